//! What older and newer programs rely on: packs of earlier versions, and the schemas.

mod newer_packs;
mod old_packs;
mod schemas;
