//! The figures behind condition Consistent. They stand still while nothing happens: a status that counts along would be written for ever.

use crate::observe::Instance;

/// What the instances say of their pages: words for the condition, or why it is not so.
pub fn pages(instances: &[Instance]) -> Result<&'static str, (&'static str, String)> {
    let reported = || instances.iter().filter_map(|i| Some((i.name.as_str(), i.report.pages?)));
    let damaged: Vec<String> = reported()
        .filter(|(_, pages)| pages.failures > 0)
        .map(|(name, pages)| format!("{name} ({})", pages.failures))
        .collect();
    if !damaged.is_empty() {
        return Err((
            "ChecksumFailures",
            format!(
                "pages whose checksum is wrong were read on {}: what is on that disk is damaged; switch over to another instance, \
                 then delete this one's pod and claim, so that it is copied anew; without another restore a backup",
                damaged.join(", ")
            ),
        ));
    }
    let without: Vec<&str> = reported().filter(|(_, pages)| !pages.checksums).map(|(name, _)| name).collect();
    if !without.is_empty() {
        return Err((
            "ChecksumsOff",
            format!(
                "page checksums are off on {}: damage on a disk would go unnoticed; pg_checksums --enable turns them on while the \
                 server is stopped",
                without.join(", ")
            ),
        ));
    }
    match reported().count() == instances.len() {
        true => Ok("page checksums on, 0 failures"),
        // Agents of an earlier version.
        false => Ok("page checksums not reported by every instance"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::instance;
    use holdfast_core::report::PagesReport;

    fn instances(pages: &[Option<(bool, i64)>]) -> Vec<Instance> {
        let one = |(n, pages): (usize, &Option<(bool, i64)>)| {
            let pages = pages.map(|(checksums, failures)| PagesReport { checksums, failures });
            instance(n as i32, |report| report.pages = pages)
        };
        pages.iter().enumerate().map(one).collect()
    }

    #[test]
    fn damaged_pages_name_their_instance_and_what_to_do() {
        let (reason, words) = pages(&instances(&[Some((true, 0)), Some((true, 3))])).unwrap_err();
        assert_eq!(reason, "ChecksumFailures");
        assert!(
            words.contains("orders-1 (3)") && !words.contains("orders-0") && words.contains("delete"),
            "{words}"
        );
        let (reason, words) = pages(&instances(&[Some((false, 0)), Some((true, 0))])).unwrap_err();
        assert!(reason == "ChecksumsOff" && words.contains("orders-0"), "{words}");
    }

    #[test]
    fn an_agent_that_says_nothing_is_no_fault_and_no_praise() {
        assert_eq!(pages(&instances(&[Some((true, 0)); 2])), Ok("page checksums on, 0 failures"));
        assert_eq!(
            pages(&instances(&[None, Some((true, 0))])),
            Ok("page checksums not reported by every instance")
        );
    }
}
