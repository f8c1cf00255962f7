//! Counts, sizes and rates as people read them.

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(group));
    }
    text
}

/// Bytes in decimal units, as drives and networks count: `70.5 GB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
    let mut value = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let decimals = usize::from(value < 99.95);
    format!("{value:.decimals$} {unit}")
}

/// How sizes are shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    /// As exact numbers of bytes.
    pub exact: bool,
}

impl Sizes {
    /// In a sentence: `70.5 GB` or `70,519,637,090 bytes`.
    pub(crate) fn bytes(self, n: u64) -> String {
        if self.exact {
            counted(n, "byte")
        } else {
            bytes(n)
        }
    }

    /// In a column of sizes: `70.5 GB` or `70,519,637,090`.
    pub(crate) fn cell(self, n: u64) -> String {
        if self.exact { grouped(n) } else { bytes(n) }
    }
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(n), if n == 1 { "" } else { "s" })
}

/// Bytes of a mean, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative"
)]
pub(super) fn mean_bytes(n: f64) -> String {
    bytes(n.max(0.0) as u64)
}

/// Bytes per second in decimal units: `2.91 GB/s`.
pub(super) fn rate(bytes_per_second: f64) -> String {
    format!("{:.2} GB/s", bytes_per_second / 1e9)
}

/// A share from 0 to 1: `56.2 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `hits` of `all` as a share from 0 to 1; 0 where there are none.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(super) fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 12, 123, 1234, 70_519_637_090].map(grouped),
            ["0", "12", "123", "1,234", "70,519,637,090"]
        );
        assert_eq!(
            [0, 999, 1000, 99_949, 99_950, 999_600, 70_519_637_090].map(bytes),
            [
                "0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "1.0 MB", "70.5 GB"
            ]
        );
        assert_eq!(counted(1, "pack"), "1 pack");
        assert_eq!(counted(2034, "pack"), "2,034 packs");
    }
}
