//! Whether this process may use AMX.

#![expect(unsafe_code, reason = "CPUID, and a system call without memory")]

use std::sync::OnceLock;

/// AMX for bf16 was detected, and the system lets this process use its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels) struct Amx(());

impl Amx {
    pub(in crate::kernels) fn detect() -> Option<Self> {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        let detected = *DETECTED.get_or_init(|| has_instructions() && may_use_tiles());
        detected.then_some(Self(()))
    }
}

/// AMX-TILE and AMX-BF16 (Intel SDM, CPUID leaf 7, bits 24 and 22 of EDX).
fn has_instructions() -> bool {
    // under Miri there is no CPUID
    if cfg!(miri) {
        return false;
    }
    #[allow(unused_unsafe, reason = "safe since Rust 1.94")]
    // SAFETY: every x86-64 processor has CPUID; leaf 7 is asked for where leaf 0 says that it is there
    let features = unsafe {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        match __cpuid(0).eax {
            7.. => __cpuid_count(7, 0).edx,
            _ => 0,
        }
    };
    let wanted = 1 << 24 | 1 << 22;
    features & wanted == wanted
}

/// Asks Linux for the registers of this process: a thread of one that has not asked is killed at the
/// first use (Documentation/arch/x86/xstate.rst). No other system was tried.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: a call with two numbers that touches no memory of this process
    let result = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}
