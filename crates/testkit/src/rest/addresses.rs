//! Cluster addresses and node ports for Services.

use super::{State, meta};
use crate::{
    builtin::service,
    kinds::Kind,
    status::{Fault, Refusal},
};
use serde_json::{Value, json};

/// The first of the ports that nodes have.
const NODE_PORTS: u32 = 30000;

impl State {
    /// Gives a Service the addresses and ports that it lacks, before it is looked at. `old`: what it replaces.
    ///
    /// Errors: it asks for what cannot be had.
    pub(super) fn allot(
        &mut self,
        kind: &Kind,
        old: Option<&Value>,
        new: &mut Value,
        dry_run: bool,
    ) -> Result<(), Refusal> {
        let name = meta(new, "name").to_string();
        let invalid = |faults: &[Fault]| Refusal::invalid(kind, &kind.kind, &name, faults);
        service::keep(old, new);
        service::families(old, new).map_err(|faults| invalid(&faults))?;
        let external = |service: &Value| service["spec"]["type"] == "ExternalName";
        let headless = new["spec"]["clusterIP"] == "None";
        if !external(new) && !headless && old.is_none_or(external) {
            match new["spec"]["clusterIP"].as_str() {
                Some(address) if self.has_address(address) => {
                    let why = format!("failed to allocate IP {address}: provided IP is already allocated");
                    return Err(invalid(&[Fault::invalid(
                        "spec.clusterIPs",
                        &new["spec"]["clusterIPs"],
                        &why,
                    )]));
                }
                Some(_) => {}
                None if dry_run => {
                    new["spec"]["clusterIPs"] = json!(["10.96.0.0"]);
                    new["spec"]["clusterIP"] = "10.96.0.0".into();
                }
                None => {
                    let address = loop {
                        self.addresses += 1;
                        let address =
                            format!("10.96.{}.{}", self.addresses / 250 + 1, self.addresses % 250 + 1);
                        if !self.has_address(&address) {
                            break address;
                        }
                    };
                    new["spec"]["clusterIPs"] = json!([address]);
                    new["spec"]["clusterIP"] = address.into();
                }
            }
        }
        if service::has_node_ports(&new["spec"]) {
            if let Some(twice) = old.and_then(|_| service::twice(&new["spec"])) {
                return Err(Refusal::internal(format!("duplicate nodePort: {{{twice}}}")));
            }
            for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
                if port.get("nodePort").is_none() {
                    self.addresses += 1;
                    port["nodePort"] = (NODE_PORTS + self.addresses % 2768).into();
                }
            }
        }
        Ok(())
    }

    fn has_address(&self, address: &str) -> bool {
        let Some(services) = self.find("v1", "Service") else { return false };
        self.store.all(services).values().any(|service| service["spec"]["clusterIP"] == address)
    }
}
