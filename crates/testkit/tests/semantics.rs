//! The server's semantics, seen through the real kube client on a paused clock.

// Helpers of tests are not tests to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "semantics/apply.rs"]
mod apply;
#[path = "semantics/custom.rs"]
mod custom;
#[path = "semantics/deletion.rs"]
mod deletion;
#[path = "semantics/faults.rs"]
mod faults;
#[path = "semantics/lists.rs"]
mod lists;
#[path = "semantics/objects.rs"]
mod objects;
#[path = "semantics/watches.rs"]
mod watches;
#[path = "semantics/wire.rs"]
mod wire;

use holdfast_testkit::Server;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, core::Status};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A server with the namespace `lab`, and a client of it.
fn lab() -> (Server, Client) {
    let server = Server::new("2026-03-01T10:00:00Z".parse().unwrap(), 1);
    server.namespace("lab");
    let client = server.client("tester", "lab");
    (server, client)
}

fn of<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

fn map(name: &str, data: Value) -> ConfigMap {
    of(json!({"metadata": {"name": name}, "data": data}))
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "lab")
}

/// The Status of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Status {
    match result.unwrap_err() {
        kube::Error::Api(status) => *status,
        other => panic!("no refusal: {other}"),
    }
}
