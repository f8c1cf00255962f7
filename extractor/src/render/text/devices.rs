use segpack_manifests::documents::{DeviceEntry, DevicesReport};

use super::numbers::bytes;
use super::page::Page;

const HEADER: [&str; 6] = [
    "device",
    "name",
    "compute capability",
    "multiprocessors",
    "memory",
    "supported",
];

/// The GPUs of this machine, and the device that `auto` selects.
pub(crate) fn devices(report: &DevicesReport) -> String {
    let mut page = Page::default();
    if !report.devices.is_empty() {
        page.table(2, &HEADER, report.devices.iter().map(row).collect());
        page.blank();
    }
    if let Some(version) = &report.driver_cuda_version {
        page.line(format_args!("driver: CUDA {version}"));
    }
    if let Some(problem) = &report.problem {
        page.line(problem);
    }
    page.line(format_args!("--device auto selects {}", report.auto));
    page.into_text()
}

fn row(device: &DeviceEntry) -> Vec<String> {
    let usable = if device.supported {
        "yes"
    } else {
        "no: requires Ampere and CUDA 11.8 or later"
    };
    vec![
        format!("cuda:{}", device.number),
        device.name.clone(),
        device.compute_capability.clone(),
        device.multiprocessors.to_string(),
        bytes(device.memory),
        usable.to_owned(),
    ]
}
