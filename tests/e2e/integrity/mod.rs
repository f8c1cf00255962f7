//! Damaged and lying packs, and hostile bytes for every parser.

mod against;
mod bad_packs;
mod damage;
mod environment;
mod fuzz_smoke;
mod identity;
mod lies;
mod links;
mod restorable;
mod sign;
mod signers;
mod values;
