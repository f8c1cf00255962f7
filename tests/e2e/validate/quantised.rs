//! Traces of the official classes of quantised checkpoints, dequantised (`fixtures/decoders`): FP8
//! blocks of Qwen3-MoE, MXFP4 of gpt-oss.

use std::fs;
use std::path::{Path, PathBuf};

use super::families::{assert_inside_however_packed, checkpoint_of, of_any_checkpoint, packed_as};
use super::traces::{report, trace_of};
use crate::support::cli::segpack;
use crate::support::folders::temp;
use crate::support::gpu::with_gpu;
use crate::support::tiny::{Tensor, shard_bytes, tensors_of};

const FP8: &str = "qwen3_moe_fp8";

/// The FP8 checkpoint with other tensors, packed.
fn changed(folder: &Path, change: impl FnOnce(&mut Vec<Tensor>)) -> PathBuf {
    let (from, to) = (checkpoint_of(FP8), folder.join("checkpoint"));
    fs::create_dir(&to).unwrap();
    fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut tensors = tensors_of(&fs::read(from.join("model.safetensors")).unwrap());
    change(&mut tensors);
    fs::write(to.join("model.safetensors"), shard_bytes(&tensors)).unwrap();
    packed_as(&to, folder, "raw")
}

#[test]
fn quantised_weights_are_inside_the_gate_of_the_official_class_that_dequantises_them() {
    for name in [FP8, "gpt_oss_mxfp4"] {
        assert_inside_however_packed(name);
    }
}

#[test]
fn quantised_weights_of_a_plain_decoder_are_inside_the_gate_on_a_gpu() {
    let folder = temp();
    let pack = packed_as(&checkpoint_of(FP8), folder.path(), "raw");
    let trace = trace_of(&format!("{FP8}.float32"));
    for more in ["", "--expert-cache 1"] {
        let arguments = format!(
            "validate {} --reference {} --device cuda -q --json {more}",
            pack.display(),
            trace.display()
        );
        let report = with_gpu(&arguments, &[]).ok().json();
        assert_eq!(report["verdict"], "inside", "{more}: {report}");
    }
}

#[test]
fn one_scale_that_is_another_is_outside_the_gate() {
    let folder = temp();
    let scale = "model.layers.0.self_attn.o_proj.weight_scale_inv";
    let pack = changed(folder.path(), |tensors| {
        let scales = tensors.iter_mut().find(|t| t.name == scale).unwrap();
        scales.bytes[7] ^= 1; // four times as much, or a quarter, of the last block
    });
    let report = report(&pack, &of_any_checkpoint(FP8, folder.path()), 3);
    assert_eq!(report["verdict"], "outside");
}

#[test]
fn parts_of_weights_that_nothing_computes_with_are_refused_by_name() {
    let folder = temp();
    let pack = changed(folder.path(), |tensors| {
        let mut scales = tensors.clone();
        scales.retain(|tensor| tensor.name.ends_with(".weight_scale_inv"));
        for scale in &mut scales {
            scale.name = scale.name.replace(".weight_scale_inv", ".input_scale");
            scale.dtype = "F32".to_owned();
            (scale.shape, scale.bytes) = (vec![], vec![0, 0, 128, 63]);
        }
        tensors.extend(scales);
    });
    let run = segpack!["run", &pack, "--prompt-ids", "1,2", "--max-new-tokens", "1"].exits(3);
    run.says(&["input_scale", "quantized weights are not run"]);
}
