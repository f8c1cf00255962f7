//! Codes of sound: their choice, and the rows of their embeddings.

use super::super::driver::Argument::{self, Int};
use super::super::driver::{CudaError, DevicePtr};
use super::operands::{MatrixView, View, dtype_code};
use super::{GEMV_THREADS, Launch, SHARED_BYTES, int};
use crate::generate::SamplingOptions;

/// Codes that can be chosen among: each takes a key and a weight of shared memory, and so does what
/// fills up to a power of two.
pub(in crate::devices::cuda) const MAX_CODES: usize = 4096;
const CODE_BYTES: usize = 16;
const _: () = assert!(MAX_CODES.is_power_of_two() && MAX_CODES * CODE_BYTES <= SHARED_BYTES);

/// Bytes of what codes are chosen by, `Sampling` of codes.cu.
pub(in crate::devices::cuda) const SAMPLING_BYTES: usize = 24;

/// What codes are chosen by, for the kernel; `None`: the highest logit.
pub(in crate::devices::cuda) fn sampling(
    options: Option<&SamplingOptions>,
) -> [u8; SAMPLING_BYTES] {
    let mut bytes = [0; SAMPLING_BYTES];
    if let Some(options) = options {
        let top_k = options.top_k.unwrap_or(0);
        bytes[..8].copy_from_slice(&options.temperature.to_le_bytes());
        bytes[8..16].copy_from_slice(&options.top_p.unwrap_or(0.0).to_le_bytes());
        bytes[16..20].copy_from_slice(&i32::try_from(top_k).unwrap_or(i32::MAX).to_le_bytes());
        bytes[20..].copy_from_slice(&1_i32.to_le_bytes());
    }
    bytes
}

/// Where a choice finds what it goes by, and leaves what it comes to.
#[derive(Debug, Clone, Copy)]
pub(in crate::devices::cuda) struct CodeChoice {
    /// [`sampling`].
    pub(in crate::devices::cuda) how: DevicePtr,
    /// The random number, f64.
    pub(in crate::devices::cuda) fraction: DevicePtr,
    /// The code, u32, and its logit, f32.
    pub(in crate::devices::cuda) chosen: DevicePtr,
    /// i32, counted on.
    pub(in crate::devices::cuda) position: DevicePtr,
}

impl Launch<'_> {
    /// Chooses a code as [`Sampler`](crate::generate::Sampler) does, and counts so many positions.
    pub(in crate::devices::cuda) fn choose_code(
        &self,
        logits: View,
        choice: CodeChoice,
        tokens: usize,
    ) -> Result<(), CudaError> {
        assert!((1..=MAX_CODES).contains(&logits.len), "{logits:?}");
        let arguments = [
            logits.argument(),
            int(logits.len),
            self.rounds(),
            Argument::Pointer(choice.how),
            Argument::Pointer(choice.fraction),
            Argument::Pointer(choice.chosen),
            Argument::Pointer(choice.position),
            int(tokens),
        ];
        let shared = logits.len.next_power_of_two() * CODE_BYTES;
        self.queue("choose_code", [1, 1, 1], GEMV_THREADS, shared, &arguments)
    }

    /// `x` = the state, f32, and the row of a code, which `sum` becomes, too.
    pub(in crate::devices::cuda) fn first_code(
        &self,
        state: View,
        (table, code): (MatrixView, DevicePtr),
        sum: View,
        x: View,
    ) -> Result<(), CudaError> {
        let hidden = table.columns;
        assert!(
            (state.len, sum.len, x.len) == (hidden, hidden, 2 * hidden)
                && [state.width, sum.width] == [size_of::<f32>(); 2],
            "{state:?}, {sum:?}, {x:?} for {table:?}"
        );
        let arguments = [
            state.argument(),
            table.argument(),
            Int(dtype_code(table.dtype).0),
            Argument::Pointer(code),
            int(hidden),
            self.rounds(),
            sum.argument(),
            x.argument(),
        ];
        let grid = [hidden.div_ceil(256), 1, 1];
        self.queue("first_code", grid, 256, 0, &arguments)
    }

    /// `sum` += the row of the code that was chosen; `x` = that row, or the sum and the text.
    pub(in crate::devices::cuda) fn next_code(
        &self,
        (table, chosen): (MatrixView, DevicePtr),
        sum: View,
        text: Option<View>,
        x: View,
    ) -> Result<(), CudaError> {
        let hidden = table.columns;
        assert!(
            (sum.len, x.len, sum.width) == (hidden, hidden, size_of::<f32>())
                && text.is_none_or(|text| (text.len, text.width) == (hidden, size_of::<f32>())),
            "{sum:?}, {text:?}, {x:?} for {table:?}"
        );
        let arguments = [
            table.argument(),
            Int(dtype_code(table.dtype).0),
            Argument::Pointer(chosen),
            int(hidden),
            self.rounds(),
            sum.argument(),
            Argument::Pointer(text.map_or(DevicePtr::NULL, |text| text.ptr)),
            x.argument(),
        ];
        let grid = [hidden.div_ceil(256), 1, 1];
        self.queue("next_code", grid, 256, 0, &arguments)
    }
}
