//! Quantities as the API server writes them back: 1024Mi becomes 1Gi, 1000m becomes 1. Pure.

use serde_json::Value;

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// Rewrites the quantities of an object, where it has them. Errors: one that is none.
pub(crate) fn canonical(value: &mut Value) -> Result<(), String> {
    const OF_QUANTITIES: [&str; 5] = ["requests", "limits", "capacity", "allocatedResources", "overhead"];
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                if name == "volumeClaimTemplates" {
                    // Those of templates stay as they were written until they are stored.
                    field.as_array_mut().into_iter().flatten().try_for_each(as_texts)?;
                } else if OF_QUANTITIES.contains(&name.as_str()) && field.is_object() {
                    let mut amounts = field.as_object_mut().into_iter().flat_map(|f| f.values_mut());
                    amounts.try_for_each(rewrite)?;
                } else if name == "sizeLimit" {
                    rewrite(field)?;
                } else {
                    canonical(field)?;
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(canonical),
        _ => Ok(()),
    }
}

/// Numbers become texts; nothing else changes. Errors: a quantity that is none.
fn as_texts(claim: &mut Value) -> Result<(), String> {
    let mut checked = claim.clone();
    canonical(&mut checked)?;
    for list in ["requests", "limits"] {
        let amounts = claim.pointer_mut(&format!("/spec/resources/{list}")).and_then(Value::as_object_mut);
        for amount in amounts.into_iter().flat_map(|a| a.values_mut()) {
            if amount.is_number() {
                *amount = amount.to_string().into();
            }
        }
    }
    Ok(())
}

/// What storing makes of the quantities of a list of templates.
pub(crate) fn settle(templates: &mut [Value]) {
    for template in templates {
        // They were looked at when the body was read.
        let _ = canonical(template);
    }
}

fn rewrite(value: &mut Value) -> Result<(), String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null => "0".into(),
        _ => return Ok(()),
    };
    match written(&text) {
        Some(text) => *value = text.into(),
        // An exponent: left as it is.
        None if is_quantity(&text) => {}
        None => {
            return Err(format!(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$': {text:?}"
            ));
        }
    }
    Ok(())
}

fn is_quantity(text: &str) -> bool {
    let rest =
        text.trim_start_matches(['+', '-']).trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let exponent = rest.strip_prefix(['e', 'E']).unwrap_or("x").trim_start_matches(['+', '-']);
    text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && exponent.parse::<i32>().is_ok()
}

/// Whether an amount, in canonical form, is more than nothing.
pub(crate) fn is_positive(text: &str) -> bool {
    !text.starts_with('-') && text.starts_with(|c: char| ('1'..='9').contains(&c))
}

/// An amount in billionths, by which amounts compare however they are written. `None`: it cannot be told.
pub(crate) fn billionths(amount: &Value) -> Option<i128> {
    let text = amount.as_str()?;
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: i128 = number.parse().ok()?;
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        let unit = 1024_i128.checked_pow(u32::try_from(power + 1).ok()?)?;
        return number.checked_mul(unit)?.checked_mul(1_000_000_000);
    }
    let (_, power) = DECIMAL.iter().find(|(s, _)| *s == suffix)?;
    number.checked_mul(10_i128.checked_pow(u32::try_from(power + 9).ok()?)?)
}

/// The canonical form. `None`: it is no quantity, or one that this does not handle (an exponent).
fn written(text: &str) -> Option<String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let sign = if negative && digits != 0 { "-" } else { "" };
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        let unit = 1024_i128.checked_pow(u32::try_from(power + 1).ok()?)?;
        let scale = 10_i128.checked_pow(u32::try_from(places).ok()?)?;
        let bytes = digits.checked_mul(unit)?;
        if bytes % scale != 0 {
            // A fraction of a byte would be lost: such an amount is written in decimal units.
            let amount = bytes.checked_mul(1_000_000_000)?.checked_add(scale - 1)? / scale;
            return Some(format!("{sign}{}", decimal(amount)));
        }
        let mut bytes = bytes / scale;
        let mut unit = "";
        for next in BINARY {
            if bytes == 0 || bytes % 1024 != 0 {
                break;
            }
            bytes /= 1024;
            unit = next;
        }
        return Some(format!("{sign}{bytes}{unit}"));
    }
    let (_, power) = DECIMAL.iter().find(|(s, _)| *s == suffix)?;
    // In units of a billionth, the finest that there is.
    let shift = power + 9 - places;
    let amount = if shift >= 0 {
        digits.checked_mul(10_i128.checked_pow(u32::try_from(shift).ok()?)?)?
    } else {
        let scale = 10_i128.checked_pow(u32::try_from(-shift).ok()?)?;
        digits.checked_add(scale - 1)? / scale
    };
    let sign = if amount == 0 { "" } else { sign };
    Some(format!("{sign}{}", decimal(amount)))
}

/// An amount in billionths, in the largest decimal unit in which it is whole.
fn decimal(mut amount: i128) -> String {
    if amount == 0 {
        return "0".into();
    }
    let mut unit = DECIMAL[0].0;
    for (next, _) in &DECIMAL[1..] {
        if amount % 1000 != 0 {
            break;
        }
        amount /= 1000;
        unit = next;
    }
    format!("{amount}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_compare_however_they_are_written() {
        let of = |text: &str| billionths(&text.into());
        assert_eq!(of("1Gi"), of("1073741824"));
        assert_eq!(of("1"), of("1000m"));
        assert!(of("-1") < of("1n") && of("1G") < of("1Gi"));
        assert_eq!(of("much"), None);
    }

    #[test]
    fn amounts_are_written_in_the_largest_unit_that_fits() {
        for (given, want) in [
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1000m", "1"),
            ("500m", "500m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("2000", "2k"),
            ("1024", "1024"),
            ("10Gi", "10Gi"),
            ("0", "0"),
            ("5000M", "5G"),
            ("0.1Gi", "107374182400m"),
        ] {
            assert_eq!(written(given).as_deref(), Some(want), "{given}");
        }
        assert_eq!(written("much"), None);
    }
}
