//! Arguments of kernels, as they lie in memory.

use std::ffi::c_void;

use super::pointer::DevicePtr;

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) enum Argument {
    Pointer(DevicePtr),
    Long(u64),
    Int(i32),
    Float(f32),
    Product(Product),
    Products(Products),
    Norm(Norm),
    Choice(Choice),
    Experts(Experts),
}

impl Argument {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Pointer(_) | Self::Long(_) => 8,
            Self::Int(_) | Self::Float(_) => 4,
            Self::Product(_) => size_of::<Product>(),
            Self::Products(_) => size_of::<Products>(),
            Self::Norm(_) => size_of::<Norm>(),
            Self::Choice(_) => size_of::<Choice>(),
            Self::Experts(_) => size_of::<Experts>(),
        }
    }

    pub(super) fn pointer(&self) -> *mut c_void {
        let pointer: *const c_void = match self {
            Self::Pointer(DevicePtr(x)) | Self::Long(x) => (&raw const *x).cast(),
            Self::Int(x) => (&raw const *x).cast(),
            Self::Float(x) => (&raw const *x).cast(),
            Self::Product(x) => (&raw const *x).cast(),
            Self::Products(x) => (&raw const *x).cast(),
            Self::Norm(x) => (&raw const *x).cast(),
            Self::Choice(x) => (&raw const *x).cast(),
            Self::Experts(x) => (&raw const *x).cast(),
        };
        pointer.cast_mut()
    }
}

/// `Product` of device.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(in crate::devices::cuda) struct Product {
    pub(in crate::devices::cuda) weight: u64,
    pub(in crate::devices::cuda) bias: u64,
    pub(in crate::devices::cuda) out: u64,
    pub(in crate::devices::cuda) rows: i32,
    pub(in crate::devices::cuda) bias_type: i32,
}

/// `Products` of device.cuh.
pub(in crate::devices::cuda) type Products = [Product; 3];

/// `Norm` of dot.cuh.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(in crate::devices::cuda) struct Norm {
    pub(in crate::devices::cuda) added: u64,
    pub(in crate::devices::cuda) weight: u64,
    pub(in crate::devices::cuda) sum: u64,
    pub(in crate::devices::cuda) normed: u64,
    pub(in crate::devices::cuda) kind: i32,
    pub(in crate::devices::cuda) eps: f32,
}

/// `Choice` of router.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(in crate::devices::cuda) struct Choice {
    pub(in crate::devices::cuda) probabilities: u64,
    pub(in crate::devices::cuda) ids: u64,
    pub(in crate::devices::cuda) weights: u64,
    pub(in crate::devices::cuda) order: u64,
    pub(in crate::devices::cuda) uses: u64,
}

/// `Experts` of gemm.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(in crate::devices::cuda) struct Experts {
    pub(in crate::devices::cuda) table: u64,
    pub(in crate::devices::cuda) sorted: u64,
    pub(in crate::devices::cuda) tiles: u64,
    pub(in crate::devices::cuda) x: u64,
    pub(in crate::devices::cuda) out: u64,
    pub(in crate::devices::cuda) rows: i32,
    pub(in crate::devices::cuda) columns: i32,
    pub(in crate::devices::cuda) divide: i32,
    pub(in crate::devices::cuda) padding: i32,
}
