//! Kubernetes' quantities and bytes. Exact: a size that is one byte short would never bind.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];

/// Bytes of a quantity, rounded up; `None` for what is none, is negative, or is too large.
pub fn bytes(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut below = u32::try_from(fraction.len()).ok()?;
    let factor = match (BINARY.iter().find(|(name, _)| *name == suffix), suffix) {
        (Some((_, bits)), _) => 1_i128 << bits,
        (None, "") => 1,
        (None, "k") => 1_000,
        (None, "M") => 1_000_000,
        (None, "G") => 1_000_000_000,
        (None, "T") => 1_000_000_000_000,
        (None, "P") => 1_000_000_000_000_000,
        (None, "E") => 1_000_000_000_000_000_000,
        (None, "m") => {
            below += 3;
            1
        }
        (None, exponent) => 10_i128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    let divisor = 10_i128.checked_pow(below)?;
    let product = digits.checked_mul(factor)?;
    i64::try_from(product / divisor + i128::from(product % divisor != 0)).ok()
}

/// Bytes as people write them: in the largest binary unit that says it exactly.
pub fn of_bytes(bytes: i64) -> Quantity {
    let exact = BINARY.iter().find(|(_, bits)| bytes > 0 && bytes % (1 << bits) == 0);
    Quantity(exact.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly_and_rounded_up() {
        let read = |text: &str| bytes(&Quantity(text.into()));
        assert_eq!(read("1Gi"), Some(1 << 30));
        assert_eq!(read("1.5Mi"), Some(3 << 19));
        assert_eq!(read("0.1Ki"), Some(103));
        assert_eq!(read("1000000001"), Some(1_000_000_001));
        assert_eq!(read("2e3"), Some(2000));
        assert_eq!(read("1500m"), Some(2));
        assert_eq!(read("5G"), Some(5_000_000_000));
        assert_eq!(read("7Ei"), Some(7 << 60));
        for wrong in ["", "ten", "-1Gi", "8Ei", "1Zi", ".", "1e-3", "1e99"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bytes_are_written_so_that_they_read_the_same() {
        assert_eq!(of_bytes(1 << 30).0, "1Gi");
        assert_eq!(of_bytes(300 << 20).0, "300Mi");
        assert_eq!(of_bytes((1 << 30) + 1).0, "1073741825");
        assert_eq!(of_bytes(0).0, "0");
        for size in [1, 1023, 1024, 5_000_000_000, 7 << 40, i64::MAX] {
            assert_eq!(bytes(&of_bytes(size)), Some(size));
        }
    }
}
