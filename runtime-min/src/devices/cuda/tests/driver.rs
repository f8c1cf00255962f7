//! The driver, and what is embedded.

use super::*;

#[test]
fn the_ptx_is_for_old_drivers_and_names_every_kernel() {
    assert!(
        ptx().unwrap().contains("\n.version 7.8\n") && ptx().unwrap().contains("\n.target sm_80\n")
    );
    let sources = include_str!("../../../../shim/driver.cpp");
    let names: BTreeSet<&str> = entries(ptx().unwrap()).map(|(name, _)| name).collect();
    assert!(names.len() >= 25, "{names:?}");
    for name in &names {
        let stem = ["_bf16", "_f16", "_f32"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        assert!(
            sources.contains(&format!("({stem})")),
            "the shim lacks {name}"
        );
    }
    let norm = entries(ptx().unwrap())
        .find(|(name, _)| *name == "rms_norm")
        .unwrap();
    assert_eq!(
        norm.1,
        [8, size_of::<crate::devices::cuda::driver::Norm>(), 4, 4]
    );
    let products = entries(ptx().unwrap())
        .find(|(name, _)| *name == "gemm_mma_64")
        .unwrap();
    assert_eq!(
        products.1,
        [
            size_of::<crate::devices::cuda::driver::Products>(),
            8,
            4,
            4,
            4
        ]
    );
    let experts = entries(ptx().unwrap())
        .find(|(name, _)| *name == "expert_mma_64")
        .unwrap();
    assert_eq!(
        experts.1,
        [size_of::<crate::devices::cuda::driver::Experts>()]
    );
}

#[test]
fn a_wrong_argument_or_name_is_an_error() {
    use crate::devices::cuda::driver::Argument::Int;
    let gpu = gpu();
    // SAFETY: neither launches anything
    let [few, none] = unsafe {
        [
            gpu.launch("add", [1, 1, 1], 32, 0, &[Int(1)]),
            gpu.launch("sub", [1, 1, 1], 32, 0, &[]),
        ]
    };
    assert!(
        few.unwrap_err()
            .to_string()
            .contains("parameters of [4] bytes, wanted [8, 8, 8, 4]")
    );
    assert!(none.unwrap_err().to_string().contains("no such kernel"));
}

#[test]
fn copies_run_beside_work_and_events_order_them() {
    let gpu = gpu();
    let launch = Launch {
        gpu: &gpu,
        compute: Compute::F32,
    };
    let (_x, x) = put_f32(&gpu, &[1.0; 100]);
    let (_y, y) = put_f32(&gpu, &[0.0; 100]);
    let mut host = gpu.alloc_host(400).unwrap();
    host.copy_from_slice(&plain(&[5.0; 100]));
    let copied = gpu.event().unwrap();
    // SAFETY: `host` lives, unchanged, until the download has waited for work that waits for the
    // copy
    unsafe { gpu.upload(y.ptr, &host, Stream::Copies) }.unwrap();
    copied.record(Stream::Copies).unwrap();
    copied.hold(Stream::Work).unwrap();
    launch.add(x, y).unwrap();
    assert_eq!(get(&gpu, x), [6.0; 100]);
    copied.wait().unwrap();
}

#[test]
fn a_graph_runs_what_was_recorded_each_time() {
    gpu(); // the driver
    let gpu = Gpu::open(0).unwrap(); // nothing else may come into the recording
    let launch = Launch {
        gpu: &gpu,
        compute: Compute::F32,
    };
    let (_x, x) = put_f32(&gpu, &[1.0; 10]);
    let (_y, y) = put_f32(&gpu, &[2.0; 10]);
    gpu.begin_recording().unwrap();
    launch.add(x, y).unwrap();
    let graph = gpu.end_recording().unwrap();
    assert_eq!(get(&gpu, x), [1.0; 10], "nothing runs while it is recorded");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(get(&gpu, x), [5.0; 10]);
}

#[test]
fn too_much_memory_is_a_clear_error() {
    let gpu = gpu();
    let free = usize::try_from(gpu.free_memory().unwrap()).unwrap();
    let refused = gpu
        .alloc(free.saturating_mul(2), "experts")
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("cannot allocate") && refused.contains("(experts)"),
        "{refused}"
    );
}
