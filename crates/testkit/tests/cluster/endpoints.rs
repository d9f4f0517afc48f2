use crate::*;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{DeleteParams, ListParams};

async fn slices(lab: &Lab, service: &str) -> Vec<Value> {
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let all = lab.api::<EndpointSlice>().list(&of).await.unwrap();
    all.into_iter().map(|slice| serde_json::to_value(slice).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_service_has_the_addresses_of_its_pods() {
    let lab = Lab::new();
    let service = |name: &str, more: Value| {
        let mut spec = json!({"selector": {"app": "shop"}, "ports": [{"name": "sql", "port": 5432}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": name, "labels": {"team": "a"}}, "spec": spec})
    };
    let _: Service = lab.make(service("shop", json!({}))).await;
    let all = json!({"clusterIP": "None", "publishNotReadyAddresses": true});
    let _: Service = lab.make(service("shop-pods", all)).await;
    let _: Service = lab.make(service("by-hand", json!({"selector": {}}))).await;
    lab.rest().await;
    let empty = slices(&lab, "shop").await.remove(0);
    assert!(empty["endpoints"].as_array().is_none_or(Vec::is_empty));
    assert!(empty["metadata"]["name"].as_str().unwrap().starts_with("shop-"));
    let labels = &empty["metadata"]["labels"];
    assert_eq!(
        (&labels["endpointslice.kubernetes.io/managed-by"], &labels["team"]),
        (&json!("endpointslice-controller.k8s.io"), &json!("a"))
    );
    assert!(slices(&lab, "by-hand").await.is_empty());

    let _: StatefulSet = lab.make(set("shop", 2, "Parallel", on_delete())).await;
    lab.rest().await;
    let full = slices(&lab, "shop").await.remove(0);
    assert_eq!(full["ports"], json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]));
    let endpoints = full["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 2);
    let pod = lab.pod("shop-0").await;
    assert_eq!(endpoints[0]["addresses"], json!([pod["status"]["podIP"]]));
    assert_eq!(endpoints[0]["conditions"], json!({"ready": true, "serving": true, "terminating": false}));
    assert_eq!(endpoints[0]["targetRef"]["uid"], pod["metadata"]["uid"]);
    let named = slices(&lab, "shop-pods").await.remove(0);
    assert_eq!(named["endpoints"][1]["hostname"], "shop-1");

    lab.api::<Pod>().delete("shop-0", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let going = slices(&lab, "shop").await.remove(0);
    assert_eq!(
        going["endpoints"][0]["conditions"],
        json!({"ready": false, "serving": true, "terminating": true})
    );
    lab.rest().await;
    assert_ne!(slices(&lab, "shop").await[0]["endpoints"][0]["targetRef"]["uid"], pod["metadata"]["uid"]);
    lab.api::<Service>().delete("shop", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert!(slices(&lab, "shop").await.is_empty());
}
