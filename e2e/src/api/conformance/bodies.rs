//! Objects of the built-in kinds that the operators write, in forms to which no controller has anything to do.

use super::{kinds::Kind, pods};
use serde_json::{Value, json};

/// Changes: where, and what to put there.
pub type Edits = Vec<(&'static str, Vec<Value>)>;

fn kind(
    (group, version): (&'static str, &'static str),
    (kind, plural): (&'static str, &'static str),
    samples: Vec<Value>,
    edits: Edits,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        plural,
        status: false,
        samples,
        edits,
        status_edits: Vec::new(),
        selectors: &["metadata.name=one", "metadata.name!=one", "metadata.name=", "spec.replicas=0"],
        definition: None,
    }
}

const CORE: (&str, &str) = ("", "v1");
const RBAC: (&str, &str) = ("rbac.authorization.k8s.io", "v1");

/// All of them.
pub fn built_in() -> Vec<Kind> {
    let mut kinds = plain();
    kinds.extend(rights());
    kinds.extend(workloads());
    kinds.extend(network());
    kinds.push(claim());
    kinds.push(event());
    kinds
}

fn plain() -> Vec<Kind> {
    vec![
        kind(
            CORE,
            ("ConfigMap", "configmaps"),
            vec![
                json!({"data": {"a": "1"}}),
                json!({"data": {"a": "1", "b": ""}, "binaryData": {"x": "eA=="}}),
                json!({}),
            ],
            vec![
                ("/data/a", vec![json!("1"), json!("2"), json!("three"), Value::Null, json!("")]),
                ("/data/b", vec![json!("1"), json!("2"), Value::Null]),
                ("/data/a b", vec![json!("1")]),
                (
                    "/data",
                    vec![json!({}), Value::Null, json!("text"), json!({"a": 1}), json!({"x": "1", "c": "4"})],
                ),
                (
                    "/binaryData",
                    vec![json!({"y": "AAE="}), Value::Null, json!({"a": "eA=="}), json!({"y": "no"})],
                ),
                ("/immutable", vec![json!(true), json!(false), json!(false), json!("yes")]),
                ("/surprise", vec![json!(1)]),
            ],
        ),
        kind(
            CORE,
            ("Secret", "secrets"),
            vec![
                json!({"data": {"k": "dg=="}}),
                json!({"stringData": {"k": "v", "l": "w"}, "type": "Opaque"}),
                json!({"type": "example.com/own"}),
            ],
            vec![
                ("/data/k", vec![json!("dg=="), json!("dw=="), Value::Null, json!("%%"), json!("")]),
                ("/stringData/k", vec![json!("v"), json!("new")]),
                ("/stringData", vec![json!({"a": "1", "k": "2"}), json!({}), Value::Null]),
                ("/type", vec![json!("Opaque"), json!("example.com/other"), Value::Null]),
                ("/immutable", vec![json!(true), json!(false)]),
                ("/data/bad!", vec![json!("dg==")]),
            ],
        ),
        kind(
            CORE,
            ("ServiceAccount", "serviceaccounts"),
            vec![
                json!({}),
                json!({"automountServiceAccountToken": false, "imagePullSecrets": [{"name": "pull"}]}),
            ],
            vec![
                ("/automountServiceAccountToken", vec![json!(true), json!(false), Value::Null, json!("no")]),
                ("/imagePullSecrets", vec![json!([{"name": "a"}, {"name": "b"}]), json!([]), Value::Null]),
                ("/secrets", vec![json!([{"name": "a"}]), json!([{"name": "b"}, {"name": "a"}])]),
            ],
        ),
        kind(
            ("coordination.k8s.io", "v1"),
            ("Lease", "leases"),
            vec![
                json!({"spec": {"holderIdentity": "a", "leaseDurationSeconds": 6, "acquireTime": "2020-01-01T00:00:00.000000Z", "renewTime": "2020-01-01T00:00:00.000000Z"}}),
                json!({"spec": {"holderIdentity": "a", "leaseTransitions": 3}}),
                json!({}),
            ],
            vec![
                ("/spec/holderIdentity", vec![json!("a"), json!("b"), json!(""), Value::Null, json!(5)]),
                (
                    "/spec/renewTime",
                    vec![
                        json!("2020-01-01T00:00:01.000000Z"),
                        json!("2020-01-01T00:00:02.5Z"),
                        json!("2020-01-01T01:00:01.250000+01:00"),
                        Value::Null,
                        json!("now"),
                    ],
                ),
                ("/spec/leaseDurationSeconds", vec![json!(6), json!(15), json!(0), json!(-1), Value::Null]),
                ("/spec/leaseTransitions", vec![json!(4), json!(-1), Value::Null]),
                ("/spec/surprise", vec![json!(1)]),
                ("/spec", vec![json!({}), Value::Null, json!("text")]),
            ],
        ),
    ]
}

fn rights() -> Vec<Kind> {
    vec![
        kind(
            RBAC,
            ("Role", "roles"),
            vec![
                json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
                json!({"rules": []}),
            ],
            vec![(
                "/rules",
                vec![
                    json!([{"apiGroups": ["", "apps"], "resources": ["pods", "statefulsets"], "verbs": ["get", "list"]}]),
                    json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}]),
                    json!([{"apiGroups": [""], "resources": ["pods"], "verbs": []}]),
                    json!([{"apiGroups": [""], "verbs": ["get"]}]),
                    json!([]),
                    Value::Null,
                    json!("all"),
                ],
            )],
        ),
        kind(
            RBAC,
            ("RoleBinding", "rolebindings"),
            vec![
                json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]}),
                json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
            ],
            vec![
                (
                    "/subjects",
                    vec![
                        json!([{"kind": "ServiceAccount", "name": "t"}]),
                        json!([{"kind": "User", "name": "u"}, {"kind": "Group", "name": "g", "apiGroup": "rbac.authorization.k8s.io"}]),
                        json!([{"kind": "Robot", "name": "u"}]),
                        json!([]),
                        Value::Null,
                    ],
                ),
                ("/roleRef/name", vec![json!("r"), json!("other"), json!("")]),
                ("/roleRef/kind", vec![json!("Role"), json!("ClusterRole"), json!("King")]),
            ],
        ),
        Kind {
            status: true,
            status_edits: vec![
                ("/status/observedGeneration", vec![json!(1), json!(2)]),
                ("/status/disruptionsAllowed", vec![json!(0), json!(1)]),
                (
                    "/status/conditions",
                    vec![
                        json!([{"type": "DisruptionAllowed", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2020-01-01T00:00:00Z"}]),
                        json!([]),
                    ],
                ),
            ],
            ..kind(
                ("policy", "v1"),
                ("PodDisruptionBudget", "poddisruptionbudgets"),
                vec![
                    json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}}),
                    json!({"spec": {"maxUnavailable": "50%", "selector": {"matchLabels": {"app": "y"}}}}),
                ],
                vec![
                    ("/spec/minAvailable", vec![json!(2), json!("20%"), Value::Null, json!(-1)]),
                    ("/spec/maxUnavailable", vec![json!(1), json!(0), Value::Null]),
                    ("/spec/selector", vec![json!({"matchLabels": {"app": "z"}}), json!({}), Value::Null]),
                    ("/spec/selector/matchLabels/app", vec![json!("q"), Value::Null]),
                    ("/spec/unhealthyPodEvictionPolicy", vec![json!("AlwaysAllow"), json!("Never")]),
                ],
            )
        },
    ]
}

fn workloads() -> Vec<Kind> {
    let set = |replicas: i64| {
        json!({"spec": {"serviceName": "s", "replicas": replicas, "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": pods::plain("Always")},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}}]}})
    };
    let job =
        json!({"spec": {"suspend": true, "backoffLimit": 0, "template": {"spec": pods::plain("Never")}}});
    let condition =
        json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]);
    vec![
        Kind {
            status: true,
            status_edits: vec![
                ("/status/replicas", vec![json!(0), json!(1), json!(-1)]),
                ("/status/readyReplicas", vec![json!(1), json!(0), Value::Null]),
                ("/status/observedGeneration", vec![json!(1)]),
                ("/status/conditions", vec![condition.clone(), json!([])]),
            ],
            ..kind(
                ("apps", "v1"),
                ("StatefulSet", "statefulsets"),
                vec![
                    set(0),
                    json!({"spec": {"serviceName": "s", "replicas": 0, "podManagementPolicy": "Parallel",
                        "updateStrategy": {"type": "OnDelete"}, "selector": {"matchLabels": {"app": "x"}},
                        "template": {"metadata": {"labels": {"app": "x"}, "annotations": {"note": "1"}}, "spec": pods::full("Always")},
                        "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"set": "data"}}, "spec": {"accessModes": ["ReadWriteOnce"],
                            "storageClassName": "fast", "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}}}}],
                        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"}}}),
                    json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"app": "x"}}, "serviceName": "s",
                    "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
                ],
                vec![
                    ("/spec/replicas", vec![json!(0), json!(3), json!(-1), Value::Null, json!("two")]),
                    ("/spec/template/metadata/labels/app", vec![json!("x"), json!("z")]),
                    ("/spec/template/metadata/annotations/note", vec![json!("1"), json!("2"), Value::Null]),
                    (
                        "/spec/template/spec/terminationGracePeriodSeconds",
                        vec![json!(5), json!(60), Value::Null],
                    ),
                    ("/spec/template/spec/nodeSelector", vec![json!({"disk": "ssd"}), Value::Null]),
                    ("/spec/serviceName", vec![json!("s"), json!("t")]),
                    ("/spec/podManagementPolicy", vec![json!("Parallel"), json!("OrderedReady")]),
                    (
                        "/spec/updateStrategy",
                        vec![
                            json!({"type": "OnDelete"}),
                            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}),
                            json!({}),
                        ],
                    ),
                    ("/spec/minReadySeconds", vec![json!(3), json!(0)]),
                    (
                        "/spec/persistentVolumeClaimRetentionPolicy",
                        vec![json!({"whenDeleted": "Delete"}), Value::Null],
                    ),
                ]
                .into_iter()
                .chain(pods::template())
                .collect(),
            )
        },
        Kind {
            status: true,
            status_edits: vec![
                ("/status/active", vec![json!(1), Value::Null]),
                ("/status/failed", vec![json!(1)]),
                ("/status/startTime", vec![json!("2020-01-01T00:00:00Z")]),
            ],
            selectors: &["metadata.name=one", "status.successful=0", "status.successful!=0", "spec.x=1"],
            ..kind(
                ("batch", "v1"),
                ("Job", "jobs"),
                vec![
                    job,
                    json!({"spec": {"suspend": true, "backoffLimit": 0, "activeDeadlineSeconds": 600,
                        "template": {"metadata": {"labels": {"app": "x"}}, "spec": pods::full("Never")}}}),
                ],
                vec![
                    ("/spec/suspend", vec![json!(true), json!(true), json!(false)]),
                    ("/spec/parallelism", vec![json!(0), json!(2), json!(-1)]),
                    ("/spec/backoffLimit", vec![json!(0), json!(3), Value::Null]),
                    ("/spec/activeDeadlineSeconds", vec![json!(60), Value::Null]),
                    ("/spec/ttlSecondsAfterFinished", vec![json!(60), json!(120), Value::Null]),
                    ("/spec/completions", vec![json!(1), json!(2)]),
                    (
                        "/spec/template/spec/restartPolicy",
                        vec![json!("OnFailure"), json!("Never"), json!("Always")],
                    ),
                    ("/spec/template/metadata/annotations/note", vec![json!("1"), Value::Null]),
                ]
                .into_iter()
                .chain(pods::template())
                .collect(),
            )
        },
        Kind {
            status: true,
            status_edits: vec![
                ("/status/phase", vec![json!("Running"), json!("Failed"), json!("Pending")]),
                (
                    "/status/conditions",
                    vec![
                        condition,
                        json!([{"type": "PodScheduled", "status": "False", "reason": "R"}]),
                        json!([]),
                    ],
                ),
                ("/status/podIP", vec![json!("10.1.2.3")]),
                ("/status/message", vec![json!("m"), Value::Null]),
            ],
            selectors: &[
                "metadata.name=one",
                "status.phase=Pending",
                "status.phase!=Pending",
                "spec.nodeName=",
                "spec.restartPolicy=Never",
                "spec.schedulerName=nobody",
            ],
            ..kind(
                CORE,
                ("Pod", "pods"),
                vec![
                    json!({"spec": pods::plain("Always")}),
                    json!({"spec": pods::full("Never")}),
                    json!({"spec": {"schedulerName": "nobody", "restartPolicy": "Never", "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]}}),
                ],
                vec![
                    ("/spec/containers", vec![json!([{"name": "main", "image": "example.test/main:2"}])]),
                    ("/spec/activeDeadlineSeconds", vec![json!(60), json!(30), json!(0)]),
                    ("/spec/terminationGracePeriodSeconds", vec![json!(5)]),
                    ("/spec/nodeSelector", vec![json!({"disk": "ssd"})]),
                    ("/spec/hostname", vec![json!("h")]),
                ],
            )
        },
    ]
}

fn network() -> Vec<Kind> {
    vec![
        Kind {
            status: true,
            status_edits: vec![
                ("/status/loadBalancer", vec![json!({"ingress": [{"ip": "192.0.2.1"}]}), json!({})]),
                (
                    "/status/conditions",
                    vec![
                        json!([{"type": "T", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2020-01-01T00:00:00Z"}]),
                    ],
                ),
            ],
            ..kind(
                CORE,
                ("Service", "services"),
                vec![
                    json!({"spec": {"ports": [{"port": 5432}]}}),
                    json!({"spec": {"clusterIP": "None", "ports": [{"port": 5432, "name": "pg"}], "publishNotReadyAddresses": true, "selector": {"app": "x"}}}),
                    json!({"spec": {"ports": [{"port": 5432, "name": "pg", "targetPort": "pg"}, {"port": 80, "name": "web"}], "selector": {"app": "x", "role": "primary"}}}),
                    json!({"spec": {"clusterIP": "None", "ports": [{"port": 5432, "name": "pg"}]}}),
                ],
                vec![
                    (
                        "/spec/ports",
                        vec![
                            json!([{"port": 5432}]),
                            json!([{"port": 5433, "name": "pg"}]),
                            json!([{"port": 5432, "name": "pg"}, {"port": 9187, "name": "m", "appProtocol": "http"}]),
                            json!([]),
                            json!([{"port": 0}]),
                            json!([{"port": 1}, {"port": 2}]),
                        ],
                    ),
                    ("/spec/selector", vec![json!({"app": "y"}), json!({}), Value::Null]),
                    ("/spec/selector/app", vec![json!("z"), Value::Null]),
                    ("/spec/clusterIP", vec![json!("None"), json!("{address}")]),
                    (
                        "/spec/type",
                        vec![json!("ClusterIP"), json!("NodePort"), json!("LoadBalancer"), json!("Odd")],
                    ),
                    ("/spec/publishNotReadyAddresses", vec![json!(true), json!(false), Value::Null]),
                    ("/spec/sessionAffinity", vec![json!("None"), json!("ClientIP")]),
                    ("/spec/internalTrafficPolicy", vec![json!("Local"), json!("Cluster")]),
                ],
            )
        },
        kind(
            ("discovery.k8s.io", "v1"),
            ("EndpointSlice", "endpointslices"),
            vec![
                json!({"addressType": "IPv4", "endpoints": [], "ports": [{"port": 5432, "name": "pg"}]}),
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "p", "namespace": "n", "uid": "u"}}], "ports": [{"port": 5432, "protocol": "TCP"}]}),
            ],
            vec![
                (
                    "/endpoints",
                    vec![
                        json!([{"addresses": ["10.1.2.4"]}]),
                        json!([{"addresses": ["10.1.2.5"], "conditions": {"ready": false}, "nodeName": "n"}]),
                        json!([]),
                        Value::Null,
                        json!([{"addresses": ["nowhere"]}]),
                        json!([{"addresses": []}]),
                    ],
                ),
                (
                    "/ports",
                    vec![
                        json!([{"port": 5433, "name": "pg"}]),
                        json!([]),
                        Value::Null,
                        json!([{"port": 70000}]),
                    ],
                ),
                ("/addressType", vec![json!("IPv4"), json!("IPv6"), json!("Odd")]),
            ],
        ),
    ]
}

fn claim() -> Kind {
    let claim = |class: &str, size: &str| json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": size}}}});
    Kind {
        status: true,
        status_edits: vec![
            ("/status/phase", vec![json!("Bound"), json!("Pending"), json!("Lost")]),
            ("/status/capacity", vec![json!({"storage": "1Gi"}), json!({"storage": "2048Mi"})]),
            ("/status/accessModes", vec![json!(["ReadWriteOnce"]), Value::Null]),
            ("/status/conditions", vec![json!([{"type": "Resizing", "status": "True"}]), json!([])]),
        ],
        ..kind(
            CORE,
            ("PersistentVolumeClaim", "persistentvolumeclaims"),
            vec![claim("nobody", "1Gi"), claim("", "1024Mi"), claim("nobody", "0.5Gi")],
            vec![
                (
                    "/spec/resources/requests/storage",
                    vec![
                        json!("1Gi"),
                        json!("2Gi"),
                        json!("1073741824"),
                        json!(1_073_741_824),
                        json!("512Mi"),
                        json!("much"),
                        json!("-1"),
                    ],
                ),
                ("/spec/storageClassName", vec![json!("nobody"), json!("other"), Value::Null]),
                (
                    "/spec/accessModes",
                    vec![json!(["ReadWriteOnce"]), json!(["ReadWriteMany"]), json!([]), json!(["Odd"])],
                ),
                ("/spec/volumeName", vec![json!("v")]),
                ("/spec/volumeMode", vec![json!("Filesystem"), json!("Block")]),
            ],
        )
    }
}

fn event() -> Kind {
    Kind {
        selectors: &[
            "metadata.name=one",
            "type=Warning",
            "reason=Odd",
            "involvedObject.kind=ConfigMap",
            "involvedObject.uid=u",
            "source=x",
            "message=m",
        ],
        ..kind(
            CORE,
            ("Event", "events"),
            vec![
                json!({"involvedObject": {"kind": "ConfigMap", "name": "anchor", "namespace": "{namespace}", "uid": "u"}, "reason": "Odd", "message": "m", "type": "Warning", "source": {"component": "x"}, "count": 1,
                    "firstTimestamp": "2020-01-01T00:00:00Z", "lastTimestamp": "2020-01-01T00:00:00Z"}),
                json!({"involvedObject": {"kind": "ConfigMap", "name": "anchor", "namespace": "{namespace}"}, "reason": "Made", "type": "Normal", "action": "Make", "eventTime": "2020-01-01T00:00:00.000000Z",
                    "reportingComponent": "example.com/operator", "reportingInstance": "i", "message": "note"}),
            ],
            vec![
                ("/message", vec![json!("m"), json!("n"), Value::Null]),
                ("/count", vec![json!(2), json!("many")]),
                ("/reason", vec![json!("Odd"), json!("Other")]),
                ("/type", vec![json!("Normal"), json!("Warning")]),
                (
                    "/series",
                    vec![json!({"count": 2, "lastObservedTime": "2020-01-01T00:00:01.000000Z"}), Value::Null],
                ),
            ],
        )
    }
}
