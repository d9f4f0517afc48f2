//! Kubernetes quantities as numbers, and what of them can be carried out. Pure.
//!
//! The API server takes nearly any text in the resources of our kinds and refuses it only in the pod that is made of it,
//! with an answer that names neither field nor object of ours. So every quantity of a spec is read here first.

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use std::{collections::BTreeMap, fmt};

/// A quantity that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Path of the field in its object.
    pub field: String,
    /// What is wrong with it: a sentence that goes on after the field.
    pub problem: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl std::error::Error for Wrong {}

/// A size in bytes, rounded up. Errors: not a quantity, or not more than nothing.
pub fn size(field: &str, quantity: &Quantity) -> Result<i64, Wrong> {
    let text = &quantity.0;
    let wrong = |problem: String| Err(Wrong { field: field.into(), problem });
    match units(text) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) => wrong(format!("{text:?} must be more than 0")),
        None => wrong(format!("{text:?} is not a quantity, such as 1Gi")),
    }
}

/// Reads all quantities of a container's resources. `field`: the path of `resources`. Errors: the first that is none, is
/// negative, or asks for more than its limit allows.
pub fn resources(field: &str, resources: &ResourceRequirements) -> Result<(), Wrong> {
    let amounts = |part: &str, of: Option<&BTreeMap<String, Quantity>>| {
        let mut read = BTreeMap::new();
        for (name, quantity) in of.into_iter().flatten() {
            let (field, text) = (format!("{field}.{part}.{name}"), &quantity.0);
            let Some(amount) = thousandths(text) else {
                let problem = format!("{text:?} is not a quantity, such as 500m or 1Gi");
                return Err(Wrong { field, problem });
            };
            if amount < 0 {
                return Err(Wrong { field, problem: format!("{text:?} must not be negative") });
            }
            read.insert(name.clone(), (amount, text.clone()));
        }
        Ok(read)
    };
    let limits = amounts("limits", resources.limits.as_ref())?;
    for (name, (amount, text)) in amounts("requests", resources.requests.as_ref())? {
        if let Some((limit, limited)) = limits.get(&name)
            && amount > *limit
        {
            return Err(Wrong {
                field: format!("{field}.requests.{name}"),
                problem: format!("{text:?} is above {field}.limits.{name} {limited:?}"),
            });
        }
    }
    Ok(())
}

/// A quantity such as `10Gi`, `0.5` or `250m` in thousandths, rounded up. `None`: not a quantity, or beyond any size
/// that makes sense.
pub fn thousandths(text: &str) -> Option<i128> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    // Templates write 0.3333333333333333: more digits than matter only round it up.
    let (fraction, rest) = fraction.split_at(fraction.len().min(12));
    let up = i128::from(rest.bytes().any(|digit| digit != b'0'));
    let digits: i128 = format!("{whole}{fraction}").parse::<i128>().ok()? + up;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (times, by): (i128, i128) = match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        other => {
            let exponent: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    let (above, below) = (digits.checked_mul(times)?.checked_mul(1000)?, scale.checked_mul(by)?);
    let magnitude = above / below;
    // Upwards: what is cut off a negative number already went there.
    Some(if sign < 0 { -magnitude } else { magnitude + i128::from(above % below != 0) })
}

/// A quantity in whole units (bytes), rounded up.
pub fn units(text: &str) -> Option<i64> {
    let value = thousandths(text)?;
    i64::try_from(value / 1000 + i128::from(value % 1000 > 0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_means_them() {
        for (text, expected) in [
            ("10Gi", Some(10 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("512Mi", Some(512 << 20)),
            ("1e3", Some(1000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("100m", Some(1)),
            // As templates write it.
            ("0.3333333333333333Gi", Some(357_913_942)),
            ("0", Some(0)),
            ("", None),
            ("ten", None),
            ("1.2.3", None),
            ("10 Gi", None),
            (" 1Gi", None),
            ("1Gi\n", None),
            ("+1Ki", Some(1024)),
            ("-1Ki", Some(-1024)),
            ("-100m", Some(0)),
            ("--1", None),
            ("1e400", None),
            ("1KB", None),
        ] {
            assert_eq!(units(text), expected, "{text}");
        }
        assert_eq!(thousandths("0.5"), thousandths("500m"));
    }

    fn amounts(all: &[(&str, &str)]) -> Option<BTreeMap<String, Quantity>> {
        Some(all.iter().map(|(name, text)| (name.to_string(), Quantity((*text).into()))).collect())
    }

    #[test]
    fn resources_that_a_pod_could_not_have_name_their_field() {
        let verdict = |requests: &[(&str, &str)], limits: &[(&str, &str)]| {
            let both = ResourceRequirements {
                requests: amounts(requests),
                limits: amounts(limits),
                ..ResourceRequirements::default()
            };
            resources("spec.resources", &both).map_err(|wrong| wrong.to_string())
        };
        assert_eq!(
            verdict(&[("cpu", "500m"), ("memory", "1Gi")], &[("memory", "1024Mi"), ("cpu", "1")]),
            Ok(())
        );
        assert_eq!(verdict(&[], &[]), Ok(()));
        let said = |verdict: Result<(), String>| verdict.unwrap_err();
        assert_eq!(
            said(verdict(&[], &[("cpu", "")])),
            "spec.resources.limits.cpu \"\" is not a quantity, such as 500m or 1Gi"
        );
        assert!(
            said(verdict(&[("memory", "1GB")], &[]))
                .starts_with("spec.resources.requests.memory \"1GB\" is not")
        );
        assert!(
            said(verdict(&[("example.org/disks", "two")], &[]))
                .contains("requests.example.org/disks \"two\"")
        );
        assert_eq!(
            said(verdict(&[("cpu", "-1")], &[])),
            "spec.resources.requests.cpu \"-1\" must not be negative"
        );
        assert_eq!(
            said(verdict(&[("cpu", "1001m")], &[("cpu", "1")])),
            "spec.resources.requests.cpu \"1001m\" is above spec.resources.limits.cpu \"1\""
        );
    }

    #[test]
    fn a_size_is_more_than_nothing() {
        let read =
            |text: &str| size("spec.storage.size", &Quantity(text.into())).map_err(|wrong| wrong.to_string());
        assert_eq!(read("1Ki"), Ok(1024));
        for text in ["0", "-1Gi"] {
            assert!(read(text).unwrap_err().ends_with("must be more than 0"), "{text}");
        }
        assert!(read("").unwrap_err().starts_with("spec.storage.size \"\" is not a quantity"));
    }
}
