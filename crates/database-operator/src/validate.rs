//! Parses a Database once, into types that cannot be wrong. Pure; only [`Settings::from_env`] reads the environment.

use crate::quantity;
use holdfast_core::{
    Database, DatabaseSpec,
    crd::database::{Durability, DurabilityMode},
};
use k8s_openapi::apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

/// What the operator was started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of the agent (`HOLDFAST_AGENT_IMAGE`).
    pub agent_image: String,
    /// Images of PostgreSQL by major version (`HOLDFAST_POSTGRES_IMAGES`, a JSON object).
    pub postgres_images: BTreeMap<String, String>,
}

/// Why the operator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A variable is missing.
    #[error("environment variable {0} is not set")]
    Missing(&'static str),
    /// The catalogue cannot be read.
    #[error("HOLDFAST_POSTGRES_IMAGES must be a JSON object such as {{\"17\": \"postgres:17\"}}: {0}")]
    Catalogue(#[source] serde_json::Error),
}

impl Settings {
    /// Reads the environment. Errors: a variable is missing or cannot be read.
    pub fn from_env() -> Result<Self, SettingsError> {
        use holdfast_runtime::operator::setting;
        let agent_image =
            setting("HOLDFAST_AGENT_IMAGE").ok_or(SettingsError::Missing("HOLDFAST_AGENT_IMAGE"))?;
        let catalogue =
            setting("HOLDFAST_POSTGRES_IMAGES").ok_or(SettingsError::Missing("HOLDFAST_POSTGRES_IMAGES"))?;
        let postgres_images = serde_json::from_str(&catalogue).map_err(SettingsError::Catalogue)?;
        Ok(Self { agent_image, postgres_images })
    }
}

/// Why a Database cannot be carried out as it is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An object that the API server never stored.
    #[error("the object has no {0}; it was not read from the API server")]
    Incomplete(&'static str),
    /// The name cannot become part of the children's names.
    #[error(
        "metadata.name {0:?} must match ^[a-z]([-a-z0-9]*[a-z0-9])?$ and have at most 40 characters: it becomes part of pod names"
    )]
    Name(String),
    /// No image for the version.
    #[error(
        "spec.version {version:?} is not in the operator's image catalogue, which has {known}; choose one of these, or set spec.image"
    )]
    ImageUnknown {
        /// What was asked for.
        version: String,
        /// What there is.
        known: String,
    },
    /// A quantity that cannot be carried out.
    #[error(transparent)]
    Quantity(#[from] quantity::Wrong),
    /// More standbys than there can be.
    #[error(
        "spec.durability asks for {standbys} standby(s) to confirm a commit, but spec.instances {instances} leaves only {left}"
    )]
    Durability {
        /// Asked for.
        standbys: i32,
        /// Instances.
        instances: i32,
        /// Instances without the primary.
        left: i32,
    },
    /// No instances at all.
    #[error("spec.instances {0} must be at least 1; to stop the database set spec.stopped")]
    Instances(i32),
}

impl Invalid {
    /// The reason of condition Stalled.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Incomplete(_) => "Incomplete",
            Self::Name(_) => "NameInvalid",
            Self::ImageUnknown { .. } => "ImageUnknown",
            Self::Quantity(_) => "QuantityInvalid",
            Self::Durability { .. } => "DurabilityUnreachable",
            Self::Instances(_) => "InstancesInvalid",
        }
    }
}

/// A database's name: it may become part of the names of pods, Services and volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Errors: the name does not fit.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let good = text.len() <= 40
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if good { Ok(Self(text.into())) } else { Err(Invalid::Name(text.into())) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A number of instances, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instances(i32);

impl Instances {
    /// Errors: less than one.
    pub fn parse(number: i32) -> Result<Self, Invalid> {
        if number >= 1 { Ok(Self(number)) } else { Err(Invalid::Instances(number)) }
    }

    /// The number.
    pub fn get(self) -> i32 {
        self.0
    }
}

/// A size that is known in bytes and as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Size {
    /// As written.
    pub quantity: Quantity,
    /// In bytes.
    pub bytes: i64,
}

impl Size {
    /// Errors: not a quantity, or not more than nothing.
    pub fn parse(field: &str, quantity: &Quantity) -> Result<Self, Invalid> {
        Ok(Self { quantity: quantity.clone(), bytes: quantity::size(field, quantity)? })
    }
}

/// Image of the database container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// From the spec: it changes when the spec does.
    Given(String),
    /// From the operator's catalogue: a new catalogue alone restarts nothing.
    Catalogue(String),
}

/// A Database that can be carried out.
#[derive(Clone, Debug)]
pub struct ValidatedDatabase {
    /// Name.
    pub name: Name,
    /// Namespace.
    pub namespace: String,
    /// uid.
    pub uid: String,
    /// Owner reference for the children.
    pub owner: OwnerReference,
    /// Instances asked for.
    pub instances: Instances,
    /// Size of each volume.
    pub size: Size,
    /// Memory limit, bytes; 0: none.
    pub memory_bytes: i64,
    /// Image of the database container.
    pub image: Image,
    /// Value of annotation `holdfast.dev/restart`.
    pub restart: Option<String>,
    /// Durability that the spec asks for.
    pub durability: Option<Durability>,
    /// Everything that needs no parsing.
    pub spec: DatabaseSpec,
}

/// Parses a Database. Errors: what makes it impossible, naming the field.
pub fn validate(database: &Database, settings: &Settings) -> Result<ValidatedDatabase, Invalid> {
    let spec = &database.spec;
    let instances = Instances::parse(spec.instances)?;
    let image = match (&spec.image, settings.postgres_images.get(&spec.version)) {
        (Some(image), _) => Image::Given(image.clone()),
        (None, Some(image)) => Image::Catalogue(image.clone()),
        (None, None) => {
            let known: Vec<_> = settings.postgres_images.keys().map(|k| format!("{k:?}")).collect();
            return Err(Invalid::ImageUnknown {
                version: spec.version.clone(),
                known: if known.is_empty() { "no versions".into() } else { known.join(", ") },
            });
        }
    };
    if let Some(resources) = &spec.resources {
        quantity::resources("spec.resources", resources)?;
    }
    let limits = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    let memory_bytes = match limits.and_then(|l| l.get("memory")) {
        Some(memory) => Size::parse("spec.resources.limits.memory", memory)?.bytes,
        None => 0,
    };
    if let Some(durability) = &spec.durability
        && durability.mode == DurabilityMode::Required
        && durability.standbys >= instances.get()
    {
        return Err(Invalid::Durability {
            standbys: durability.standbys,
            instances: instances.get(),
            left: instances.get() - 1,
        });
    }
    Ok(ValidatedDatabase {
        name: Name::parse(&database.name_any())?,
        namespace: database.namespace().ok_or(Invalid::Incomplete("namespace"))?,
        uid: database.uid().ok_or(Invalid::Incomplete("uid"))?,
        owner: database.controller_owner_ref(&()).ok_or(Invalid::Incomplete("uid"))?,
        instances,
        size: Size::parse("spec.storage.size", &spec.storage.size)?,
        memory_bytes,
        image,
        restart: database.annotations().get(holdfast_core::names::ANNOTATION_RESTART).cloned(),
        durability: spec.durability.clone(),
        spec: spec.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::{database, settings};

    #[test]
    fn a_version_outside_the_catalogue_names_those_inside() {
        let mut db = database("");
        db.spec.version = "15".into();
        let error = validate(&db, &settings()).unwrap_err();
        assert_eq!(error.reason(), "ImageUnknown");
        let text = error.to_string();
        assert!(text.contains("spec.version \"15\"") && text.contains("\"16\", \"17\""), "{text}");
        db.spec.image = Some("registry.example/postgres:15".into());
        assert_eq!(
            validate(&db, &settings()).unwrap().image,
            Image::Given("registry.example/postgres:15".into())
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let mut db = database("");
        db.spec.storage.size = Quantity("big".into());
        assert!(validate(&db, &settings()).unwrap_err().to_string().contains("spec.storage.size"));
        let mut db = database("");
        db.spec.instances = 2;
        db.spec.durability = Some(Durability { mode: DurabilityMode::Required, standbys: 2 });
        assert_eq!(validate(&db, &settings()).unwrap_err().reason(), "DurabilityUnreachable");
        assert!(
            Name::parse("Orders").is_err()
                && Name::parse("orders-").is_err()
                && Name::parse("orders").is_ok()
        );
    }

    #[test]
    fn resources_that_no_pod_could_have_are_refused_with_their_field() {
        let mut db = database("");
        db.spec.resources = Some(k8s_openapi::api::core::v1::ResourceRequirements {
            limits: Some(BTreeMap::from([("cpu".to_string(), Quantity(String::new()))])),
            ..Default::default()
        });
        let error = validate(&db, &settings()).unwrap_err();
        assert_eq!(error.reason(), "QuantityInvalid");
        assert!(error.to_string().contains("spec.resources.limits.cpu \"\""), "{error}");
    }

    #[test]
    fn the_memory_limit_is_known_in_bytes() {
        let mut db = database("");
        let limits = BTreeMap::from([("memory".to_string(), Quantity("1Gi".into()))]);
        db.spec.resources = Some(k8s_openapi::api::core::v1::ResourceRequirements {
            limits: Some(limits),
            ..Default::default()
        });
        assert_eq!(validate(&db, &settings()).unwrap().memory_bytes, 1 << 30);
    }
}
