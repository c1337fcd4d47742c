//! The schema model of a custom kind, for server-side apply and field ownership.

use rimward_api::GroupVersionKind;
use rimward_control_kinds::custom::schema::{Additional, Schema};
use rimward_control_kinds::custom::version::{Definition, Version, definition_name};
use rimward_control_schema as schema;
use rimward_control_schema::model::{
    Definition as Shape, Field, ListKind, ListType, MapType, PatchStrategy, Presence, Type,
};
use rimward_control_schema::{DefId, Model};
use serde_json::Value;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The model of a version, and its root.
pub fn of(definition: &Definition, version: &Version) -> (Model, DefId) {
    let mut builder = Builder { model: Model::on(schema::builtin()), made: 0 };
    let name = definition_name(&definition.group, &version.name, &definition.kind);
    let mut fields = builder.fields(&version.schema);
    builder.resource(&mut fields);
    let kind = GroupVersionKind {
        group: definition.group.clone(),
        version: version.name.clone(),
        kind: definition.kind.clone(),
    };
    let mut root = Shape::new(&name, vec![kind], fields.into(), false);
    root.open = version.schema.preserve;
    let id = builder.model.add(root);
    // A name for what lists answer; its schema is written when it is published.
    builder.model.add(Shape::new(&format!("{name}List"), vec![], Box::default(), false));
    (builder.model, id)
}

struct Builder {
    model: Model,
    /// Parts have no names of their own: they are numbered.
    made: usize,
}

impl Builder {
    fn ty(&mut self, s: &Schema) -> Type {
        if s.int_or_string {
            return Type::IntOrString;
        }
        match &*s.kind {
            "boolean" => Type::Bool,
            "string" => Type::String,
            "integer" => Type::Int64,
            "number" => Type::Number,
            "array" => {
                let item = s.items.as_deref().map_or(Type::Any, |items| self.ty(items));
                Type::List(Box::new(ListType { item, kind: list_kind(s) }))
            }
            "object" => self.object(s),
            _ => Type::Any,
        }
    }

    fn object(&mut self, s: &Schema) -> Type {
        if let Some(Additional::Of(all)) = &s.additional {
            let value = self.ty(all);
            return Type::Map(Box::new(MapType { value, atomic: is_atomic(s) }));
        }
        let any = s.preserve || matches!(s.additional, Some(Additional::Any(true)));
        if any && s.properties.is_empty() && !s.embedded && !is_atomic(s) {
            return Type::Any;
        }
        let mut fields = self.fields(s);
        if s.embedded {
            self.resource(&mut fields);
        }
        self.made += 1;
        let mut shape = Shape::new(&format!("#{}", self.made), vec![], fields.into(), is_atomic(s));
        shape.open = any;
        Type::Object(self.model.add(shape))
    }

    fn fields(&mut self, s: &Schema) -> Vec<Field> {
        s.properties
            .iter()
            .map(|(name, property)| {
                let required = s.required.contains(name);
                field(name, self.ty(property), required, property.default.clone())
            })
            .collect()
    }

    /// Every resource has a type and metadata, whatever its schema says of them.
    fn resource(&mut self, fields: &mut Vec<Field>) {
        fields.retain(|f| !matches!(&*f.name, "apiVersion" | "kind" | "metadata"));
        let metadata = Type::Object(self.model.expect(OBJECT_META));
        fields.extend([
            field("apiVersion", Type::String, false, None),
            field("kind", Type::String, false, None),
            field("metadata", metadata, false, None),
        ]);
    }
}

fn field(name: &str, ty: Type, required: bool, default: Option<Value>) -> Field {
    Field {
        name: name.into(),
        ty,
        presence: Presence::AsSent,
        required,
        default: default.map(Box::new),
        merge_key: None,
        patch: PatchStrategy::default(),
        atomic: false,
        go_type: "interface {}".into(),
        proto: None,
    }
}

fn is_atomic(s: &Schema) -> bool {
    s.map_type.as_deref() == Some("atomic")
}

fn list_kind(s: &Schema) -> ListKind {
    match s.list_type.as_deref() {
        Some("set") => ListKind::Set,
        Some("map") => ListKind::Map(s.list_keys.clone().into()),
        _ => ListKind::Atomic,
    }
}
