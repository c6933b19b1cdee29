//! What the kinds in this crate are made with: the schema settings of kube's derive, without its status subresource.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde_json::{Map, Value};

/// A printer column: name, type, JSON path, priority.
pub(crate) type Column = (&'static str, &'static str, &'static str, i32);

/// The parts of a CustomResourceDefinition that differ between kinds.
#[derive(Debug)]
pub(crate) struct Definition {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub crd_name: &'static str,
    pub short_names: &'static [&'static str],
    pub namespaced: bool,
    pub status_subresource: bool,
    pub columns: &'static [Column],
    pub labels: &'static [(&'static str, &'static str)],
}

/// A root type as the schema sees it.
#[derive(JsonSchema)]
#[allow(dead_code)]
struct Root<Spec, Status> {
    /// What is wanted.
    spec: Option<Spec>,
    /// What is.
    status: Option<Status>,
}

/// Stands for a spec or status that a kind does not have.
#[derive(JsonSchema)]
pub(crate) struct Nothing {}

/// The structural schema of a kind, as the API server wants it.
pub(crate) fn schema<Spec: JsonSchema, Status: JsonSchema>(description: &str) -> Value {
    let mut schema = SchemaSettings::openapi3()
        .with(|s| {
            s.inline_subschemas = true;
            s.meta_schema = None;
        })
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator()
        .into_root_schema_for::<Root<Spec, Status>>()
        .to_value();
    schema["description"] = description.trim().into();
    if let Some(root) = schema.as_object_mut() {
        root.remove("title");
    }
    for part in ["spec", "status"] {
        not_null(&mut schema["properties"][part]);
    }
    each(&mut schema, &mut |field| {
        // Of containers read with `serde(default)`. What is absent stays absent: a server that fills fields in makes every
        // comparison of wanted and found differ.
        field.remove("default");
    });
    schema
}

/// Takes `null` out of a schema, so that rules need not look for it.
pub(crate) fn without_nulls(schema: &mut Value) {
    each(schema, &mut |field| not_null_object(field));
}

fn not_null(schema: &mut Value) {
    if let Some(schema) = schema.as_object_mut() {
        not_null_object(schema);
    }
}

fn not_null_object(schema: &mut Map<String, Value>) {
    schema.remove("nullable");
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.retain(|value| !value.is_null());
    }
}

/// Visits a schema and every schema in it.
fn each(schema: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    let Some(schema) = schema.as_object_mut() else {
        return;
    };
    visit(schema);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|field| each(field, visit));
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(inner) {
            each(inner, visit);
        }
    }
}

/// The CustomResourceDefinition of a kind.
pub(crate) fn definition(definition: &Definition, schema: Value) -> CustomResourceDefinition {
    // A schema that is no JSONSchemaProps is left out, and a test on every kind finds that.
    let schema: Option<JSONSchemaProps> = serde_json::from_value(schema).ok();
    let columns = definition
        .columns
        .iter()
        .map(
            |&(name, type_, json_path, priority)| CustomResourceColumnDefinition {
                name: name.into(),
                type_: type_.into(),
                json_path: json_path.into(),
                priority: (priority != 0).then_some(priority),
                ..Default::default()
            },
        )
        .collect();
    let labels = definition.labels.iter().map(|&(k, v)| (k.into(), v.into()));
    CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(definition.crd_name.into()),
            labels: (!definition.labels.is_empty()).then(|| labels.collect()),
            ..Default::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: definition.group.into(),
            names: CustomResourceDefinitionNames {
                kind: definition.kind.into(),
                list_kind: Some(format!("{}List", definition.kind)),
                plural: definition.plural.into(),
                singular: Some(definition.kind.to_lowercase()),
                short_names: (!definition.short_names.is_empty())
                    .then(|| definition.short_names.iter().map(|&s| s.into()).collect()),
                ..Default::default()
            },
            scope: if definition.namespaced {
                "Namespaced"
            } else {
                "Cluster"
            }
            .into(),
            versions: vec![CustomResourceDefinitionVersion {
                name: definition.version.into(),
                served: true,
                storage: true,
                additional_printer_columns: Some(columns),
                schema: Some(CustomResourceValidation {
                    open_api_v3_schema: schema,
                }),
                subresources: definition
                    .status_subresource
                    .then(|| CustomResourceSubresources {
                        status: Some(CustomResourceSubresourceStatus(serde_json::json!({}))),
                        ..Default::default()
                    }),
                ..Default::default()
            }],
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Tells kube what a root type is.
macro_rules! resource {
    ($name:ident, scope: $scope:ident, definition: $definition:expr, schema: $schema:expr) => {
        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = kube::core::$scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($name).into()
            }
            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $definition.group.into()
            }
            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $definition.version.into()
            }
            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $definition.plural.into()
            }
            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(
                &mut self,
            ) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }

        impl kube::CustomResourceExt for $name {
            fn crd() -> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition {
                crate::kind::definition(&$definition, $schema)
            }
            fn crd_name() -> &'static str {
                const { $definition.crd_name }
            }
            fn api_resource() -> kube::core::ApiResource {
                kube::core::ApiResource::erase::<Self>(&())
            }
            fn shortnames() -> &'static [&'static str] {
                $definition.short_names
            }
        }
    };
}

/// Declares the root type of a kind: `metadata`, `spec`, `status`.
///
/// kube's own derive turns the status subresource on wherever there is a status, and insists on a `spec` when reading, which an
/// object made by hand may lack.
macro_rules! root {
    ($(#[$doc:meta])* $name:ident, spec: $spec:ty, status: $status:ty $(, phase: $phase:ty)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
        pub struct $name {
            /// Standard object metadata.
            #[serde(default)]
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What is wanted.
            #[serde(default)]
            pub spec: $spec,
            /// What is.
            #[serde(default)]
            pub status: Option<$status>,
        }

        impl $name {
            /// An object of this name, without a status.
            #[must_use]
            pub fn new(name: &str, spec: $spec) -> Self {
                let mut object = Self { spec, ..Self::default() };
                object.metadata.name = Some(name.to_owned());
                object
            }
            $(
                /// The phase; an object that nobody has looked at yet is `New`, or what comes first for its kind.
                #[must_use]
                pub fn phase(&self) -> $phase {
                    self.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
                }
            )?
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct;
                let fields = 4 + usize::from(self.status.is_some());
                let mut object = serializer.serialize_struct(stringify!($name), fields)?;
                object.serialize_field("apiVersion", &<Self as kube::Resource>::api_version(&()))?;
                object.serialize_field("kind", stringify!($name))?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                if let Some(status) = &self.status {
                    object.serialize_field("status", status)?;
                }
                object.end()
            }
        }

        impl kube::core::object::HasSpec for $name {
            type Spec = $spec;
            fn spec(&self) -> &$spec {
                &self.spec
            }
            fn spec_mut(&mut self) -> &mut $spec {
                &mut self.spec
            }
        }

        impl kube::core::object::HasStatus for $name {
            type Status = $status;
            fn status(&self) -> Option<&$status> {
                self.status.as_ref()
            }
            fn status_mut(&mut self) -> &mut Option<$status> {
                &mut self.status
            }
        }
    };
}

/// A kind of `velero.io`: namespaced, no status subresource.
macro_rules! velero_kind {
    (
        $(#[doc = $doc:literal])*
        $name:ident, $(version: $version:literal,)? plural: $plural:literal, short: [$($short:literal),*],
        $(phase: $phase:ty,)? spec: $spec:ty, status: $status:ty,
        columns: [$(($($column:literal),*)),* $(,)?]
    ) => {
        crate::kind::root! {
            $(#[doc = $doc])* $name, spec: $spec, status: $status $(, phase: $phase)?
        }
        crate::kind::resource! {
            $name, scope: NamespaceResourceScope,
            definition: crate::kind::Definition {
                group: crate::names::VELERO_GROUP,
                version: crate::kind::or_v1!($($version)?),
                kind: stringify!($name),
                plural: $plural,
                crd_name: concat!($plural, ".velero.io"),
                short_names: &[$($short),*],
                namespaced: true,
                status_subresource: false,
                columns: &[$(crate::kind::column!($($column),*)),*],
                labels: &[("component", "velero")],
            },
            schema: crate::kind::schema::<$spec, $status>(concat!($($doc),*))
        }
    };
}

/// The version of a kind, v1 when it does not say.
macro_rules! or_v1 {
    () => {
        "v1"
    };
    ($version:literal) => {
        $version
    };
}

/// A printer column with or without a priority.
macro_rules! column {
    ($name:literal, $type:literal, $path:literal) => {
        ($name, $type, $path, 0)
    };
    ($name:literal, $type:literal, $path:literal, $priority:literal) => {
        ($name, $type, $path, $priority)
    };
}

pub(crate) use {column, or_v1, resource, root, velero_kind};
