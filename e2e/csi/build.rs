//! Generates gRPC servers and clients from the lists of methods below. The messages are in `src/wire.rs`, so that neither
//! protoc nor a copy of the interface's files is needed.

use tonic_build::manual::{Builder, Method, Service};

/// A service whose method `M` takes `MRequest` and returns `MResponse`.
fn service(package: &str, name: &str, methods: &[&str]) -> Service {
    let with = |method: &str| (method.to_string(), format!("{method}Request"), format!("{method}Response"));
    of(package, name, &methods.iter().map(|m| with(m)).collect::<Vec<_>>())
}

fn of(package: &str, name: &str, methods: &[(String, String, String)]) -> Service {
    let mut service = Service::builder().name(name).package(package);
    for (method, input, output) in methods {
        let mut snake = String::new();
        for (i, letter) in method.char_indices() {
            if letter.is_ascii_uppercase() && i > 0 {
                snake.push('_');
            }
            snake.push(letter.to_ascii_lowercase());
        }
        service = service.method(
            Method::builder()
                .name(snake)
                .route_name(method)
                .input_type(format!("crate::wire::{input}"))
                .output_type(format!("crate::wire::{output}"))
                .codec_path("tonic_prost::ProstCodec")
                .build(),
        );
    }
    service.build()
}

fn main() {
    let identity = service("csi.v1", "Identity", &["GetPluginInfo", "GetPluginCapabilities", "Probe"]);
    let controller = service(
        "csi.v1",
        "Controller",
        &[
            "CreateVolume",
            "DeleteVolume",
            "ValidateVolumeCapabilities",
            "ListVolumes",
            "GetCapacity",
            "ControllerGetCapabilities",
            "CreateSnapshot",
            "DeleteSnapshot",
            "ListSnapshots",
            "ControllerExpandVolume",
        ],
    );
    let node = service(
        "csi.v1",
        "Node",
        &[
            "NodeStageVolume",
            "NodeUnstageVolume",
            "NodePublishVolume",
            "NodeUnpublishVolume",
            "NodeGetVolumeStats",
            "NodeExpandVolume",
            "NodeGetCapabilities",
            "NodeGetInfo",
        ],
    );
    let entry = |a: &str, b: &str, c: &str| (a.to_string(), b.to_string(), c.to_string());
    let registration = of(
        "pluginregistration",
        "Registration",
        &[
            entry("GetInfo", "InfoRequest", "PluginInfo"),
            entry("NotifyRegistrationStatus", "RegistrationStatus", "RegistrationStatusResponse"),
        ],
    );
    Builder::new().compile(&[identity, controller, node, registration]);
}
