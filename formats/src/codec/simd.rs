//! Which instructions the coders may use. Every choice gives the same bytes.

use std::fmt;

/// A set of vector instructions that this processor and operating system have.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Simd(pub(super) Kind);

/// Only made by [`Simd::available`], which has seen the features: a value is proof of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// None: plain integers.
    Scalar,
    /// AVX2 and BMI.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL, VBMI and VBMI2.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Simd {
    /// No vector instructions.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// All that can be used here, the slowest first.
    #[cfg(target_arch = "x86_64")]
    pub fn available() -> Vec<Self> {
        use std::is_x86_feature_detected as has;
        let mut all = vec![Self::SCALAR];
        if has!("avx2") && has!("bmi1") && has!("bmi2") && has!("popcnt") {
            all.push(Self(Kind::Avx2));
            if has!("avx512f")
                && has!("avx512bw")
                && has!("avx512vl")
                && has!("avx512vbmi")
                && has!("avx512vbmi2")
            {
                all.push(Self(Kind::Avx512));
            }
        }
        all
    }

    /// All that can be used here, the slowest first.
    #[cfg(target_arch = "aarch64")]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::SCALAR];
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Self(Kind::Neon));
        }
        all
    }

    /// All that can be used here, the slowest first.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub fn available() -> Vec<Self> {
        vec![Self::SCALAR]
    }

    /// Does work that is compiled for these instructions.
    #[inline]
    pub(crate) fn run<W: Work>(self, work: W) -> W::Done {
        match self.0 {
            Kind::Scalar => work.run(),
            // AVX-512 made none of it faster
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 => compiled::with_avx2(work),
            // what is compiled without more has NEON already
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => work.run(),
        }
    }

    /// The fastest that can be used here.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::SCALAR)
    }
}

/// Plain Rust that is compiled with and without AVX2: `run`, and all that it calls,
/// has to be `#[inline(always)]`.
pub(crate) trait Work {
    /// What comes of it.
    type Done;

    /// Does it.
    fn run(self) -> Self::Done;
}

/// Work, compiled for instructions that the caller has seen.
#[cfg(target_arch = "x86_64")]
mod compiled {
    #![expect(unsafe_code, reason = "calls that need processor features")]

    use super::Work;

    pub(super) fn with_avx2<W: Work>(work: W) -> W::Done {
        #[target_feature(enable = "avx2")]
        fn call<W: Work>(work: W) -> W::Done {
            work.run()
        }
        // SAFETY: called for `Kind::Avx2` and `Kind::Avx512`, which are only made where there is AVX2
        unsafe { call(work) }
    }
}

impl fmt::Debug for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
