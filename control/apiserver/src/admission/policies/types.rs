//! The types that the expressions of a policy meet: what the schema model knows of a resource, as CEL
//! sees it.

use std::sync::Arc;

use rimward_control_cel::Type;
use rimward_control_cel::schema::{Kind, Property, Schema, escape};
use rimward_control_schema::model::Type as Modelled;
use rimward_control_schema::{DefId, Model};

use crate::served::Served;

/// Definitions within one another beyond this are of any type. (A Deployment has eight.)
const DEPTH_MAX: usize = 20;

/// The type of a resource's objects; any, if nothing is known of them.
pub fn of(served: &Served) -> Type {
    let Some(definition) = served.definition else { return Type::Dyn };
    let mut reader = Reader { model: &served.model, within: Vec::new() };
    Type::of(&Arc::new(reader.object(definition, &served.kind.kind)))
}

struct Reader<'m> {
    model: &'m Model,
    /// The definitions around the one that is read: what is within itself is of any type there.
    within: Vec<DefId>,
}

impl Reader<'_> {
    fn object(&mut self, id: DefId, name: &str) -> Schema {
        let definition = self.model.get(id);
        // What has members beyond those that are known can have any.
        if definition.open || self.within.contains(&id) || self.within.len() >= DEPTH_MAX {
            return Schema::simple(Kind::Any);
        }
        self.within.push(id);
        let mut schema = Schema::declare(name, Vec::new());
        for field in definition.fields.iter() {
            let Some(escaped) = escape(&field.name) else { continue };
            let read = self.value(&field.ty, &format!("{name}.{escaped}"));
            let property = Property { name: field.name.to_string(), schema: Arc::new(read) };
            // An object of a request is seen as it is: `metadata.namespace` needs no escaping there.
            schema.properties.insert(field.name.to_string(), property.clone());
            schema.properties.insert(escaped, property);
        }
        self.within.pop();
        schema
    }

    fn value(&mut self, of: &Modelled, name: &str) -> Schema {
        match of {
            Modelled::Bool => Schema::simple(Kind::Boolean),
            Modelled::String => Schema::simple(Kind::String),
            Modelled::Bytes => Schema::simple(Kind::Bytes),
            Modelled::Int32 | Modelled::Int64 => Schema::simple(Kind::Integer),
            Modelled::Number => Schema::simple(Kind::Number),
            Modelled::IntOrString => Schema::simple(Kind::IntOrString),
            Modelled::Time | Modelled::MicroTime => Schema::simple(Kind::Timestamp),
            Modelled::Duration => Schema::simple(Kind::Duration),
            // Text for clients, a number for some: an expression may take it for either.
            Modelled::Quantity | Modelled::Raw | Modelled::Any | Modelled::SchemaOr(..) => {
                Schema::simple(Kind::Any)
            }
            Modelled::Map(map) => Schema::map_of(self.value(&map.value, &format!("{name}.@elem"))),
            Modelled::List(list) => {
                Schema::list_of(self.value(&list.item, &format!("{name}.@idx")))
            }
            Modelled::Object(id) => self.object(*id, name),
        }
    }
}
