use crate::*;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace},
};
use kube::api::DeleteParams;

#[tokio::test(start_paused = true)]
async fn what_a_set_owns_goes_with_it_and_its_claims_stay() {
    let lab = Lab::new();
    let made: StatefulSet = lab.make(set("shop", 2, "Parallel", on_delete())).await;
    let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "shop", "uid": made.uid()});
    let _: ConfigMap = lab.make(json!({"metadata": {"name": "notes", "ownerReferences": [owner]}})).await;
    lab.rest().await;
    lab.api::<StatefulSet>().delete("shop", &DeleteParams::foreground()).await.unwrap();
    lab.rest().await;
    assert!(lab.see::<StatefulSet>("shop").await.is_null());
    assert!(lab.names::<Pod>().await.is_empty() && lab.names::<ConfigMap>().await.is_empty());
    assert_eq!(lab.script.stopped.lock().unwrap().len(), 2, "they were told to stop");
    assert_eq!(lab.names::<PersistentVolumeClaim>().await, ["data-shop-0", "data-shop-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_namespace_empties_itself() {
    let lab = Lab::new();
    let _: StatefulSet = lab.make(set("shop", 2, "Parallel", on_delete())).await;
    let _: Job = lab
        .make(json!({"metadata": {"name": "work"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [container("serve")]}}}}))
        .await;
    lab.rest().await;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    namespaces.delete("lab", &DeleteParams::default()).await.unwrap();
    lab.rest().await;
    assert!(namespaces.get_opt("lab").await.unwrap().is_none());
}
