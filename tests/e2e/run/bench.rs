//! `bench`: in which precision it measured, and against which limit.

use serde_json::{Value, json};

use crate::support::cli::segpack;
use crate::support::folders::temp;
use crate::support::tiny::tiny_full;

#[test]
fn a_bench_says_in_which_precision_it_measured_and_what_limits_a_prompt() {
    let folder = temp();
    let pack = folder.path().join("pack");
    segpack!["pack", tiny_full(), "-o", &pack].ok();
    for (compute, precision) in [("f32", "float32"), ("bf16", "bfloat16")] {
        let report = segpack![
            "bench",
            &pack,
            "--compute",
            compute,
            "--prompt",
            "2",
            "--tokens",
            "1",
            "--repeats",
            "1",
            "--threads",
            "1",
            "--json"
        ]
        .ok()
        .json();
        assert_eq!(report["compute"], precision);
        assert!(
            report["limits"][0]["fma_peak"].as_f64() > Some(0.0),
            "{report}"
        );
        let prefill = &report["resident"][0]["prefill"][0];
        assert_eq!(prefill["tokens"], 2);
        let limits: [Value; 2] = [json!("multiply_add"), json!("memory")];
        assert!(limits.contains(&prefill["limit"]), "{report}");
    }
}
