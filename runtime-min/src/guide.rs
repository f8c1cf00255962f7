//! The guide: pages of `docs/`, here so that `cargo doc` shows them and checks their links.
//!
//! A page links to other files by reference; the same reference, given before the page, takes
//! precedence and leads to the documentation instead.

pub mod running {
    #![doc = "[benchmarks]: https://docs.rs/segpack/latest/segpack/guide/benchmarks/"]
    #![doc = ""]
    #![doc = include_str!("../docs/running.md")]
}

pub mod gpu {
    #![doc = include_str!("../docs/gpu.md")]
}
