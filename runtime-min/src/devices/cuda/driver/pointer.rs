//! Addresses of the device.

/// An address on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices::cuda) struct DevicePtr(pub(in crate::devices::cuda) u64);

impl DevicePtr {
    /// No address.
    pub(in crate::devices::cuda) const NULL: Self = Self(0);

    /// So many bytes on.
    pub(in crate::devices::cuda) fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}
