//! The guide: pages of `docs/`, here so that `cargo doc` shows them and checks their links.
//!
//! A page links to other files by reference; the same reference, given before the page, takes
//! precedence and leads to the documentation instead.

pub mod commands {
    #![doc = "[drafts]: crate::guide::benchmarks#drafts"]
    #![doc = "[format]: segpack_formats::specification"]
    #![doc = "[gpu]: segpack_runtime_min::guide::gpu"]
    #![doc = "[schemas]: https://github.com/segpack/segpack/tree/main/schemas"]
    #![doc = "[sources]: crate::guide::sources"]
    #![doc = ""]
    #![doc = include_str!("../docs/commands.md")]
}

pub mod installing {
    #![doc = include_str!("../docs/installing.md")]
}

pub mod sources {
    #![doc = "[security]: https://github.com/segpack/segpack/blob/main/SECURITY.md"]
    #![doc = ""]
    #![doc = include_str!("../docs/sources.md")]
}

pub mod many_machines {
    #![doc = "[deploy]: https://github.com/segpack/segpack/tree/main/extractor/deploy"]
    #![doc = "[part_schema]: https://github.com/segpack/segpack/blob/main/schemas/part-manifest.schema.json"]
    #![doc = "[python]: crate::guide::python"]
    #![doc = ""]
    #![doc = include_str!("../docs/many-machines.md")]
}

pub mod codecs {
    #![doc = "[format]: segpack_formats::specification"]
    #![doc = "[benchmarks]: crate::guide::benchmarks"]
    #![doc = ""]
    #![doc = include_str!("../docs/codecs.md")]
}

pub mod exporting {
    #![doc = "[benchmarks]: crate::guide::benchmarks"]
    #![doc = "[commands]: crate::guide::commands"]
    #![doc = "[validating]: crate::guide::validating"]
    #![doc = ""]
    #![doc = include_str!("../docs/exporting.md")]
}

pub mod validating {
    #![doc = "[reference]: https://github.com/segpack/segpack/blob/main/runtime-min/reference/README.md"]
    #![doc = ""]
    #![doc = include_str!("../docs/validating.md")]
}

pub mod python {
    #![doc = "[many_machines]: crate::guide::many_machines"]
    #![doc = "[reference]: https://github.com/segpack/segpack/blob/main/runtime-min/reference/README.md"]
    #![doc = "[sources]: crate::guide::sources"]
    #![doc = ""]
    #![doc = include_str!("../docs/python.md")]
}

pub mod benchmarks {
    #![doc = include_str!("../docs/benchmarks.md")]
}

pub mod serve {
    #![doc = include_str!("../docs/serve.md")]
}

pub mod status {
    #![doc = "[benchmarks]: crate::guide::benchmarks"]
    #![doc = "[exporting]: crate::guide::exporting"]
    #![doc = ""]
    #![doc = include_str!("../docs/status.md")]
}
