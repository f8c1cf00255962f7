//! Documents as people read them: text for a terminal, pictures, a page for
//! a browser, a bill of materials. Pure functions of the documents
//! in `segpack_manifests`; printing is the command line's business.

pub(crate) mod cyclonedx;
pub(crate) mod html;
pub(crate) mod svg;
pub(crate) mod text;
