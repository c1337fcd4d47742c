//! How a value is owned: as a whole, field by field, or item by item.

use serde_json::{Map, Value};

use super::set::Element;
use crate::model::{Definition, Field, ListKind, Model, Type};

/// A place in the schema.
#[derive(Clone, Copy)]
pub(crate) struct Place<'m> {
    pub model: &'m Model,
    pub ty: &'m Type,
    /// The use of the type says that it is owned as a whole.
    pub atomic: bool,
}

/// What kind of value stands at a place.
pub(crate) enum Shape<'m> {
    /// A scalar, or a list or map that is owned as a whole.
    Leaf,
    Object(&'m Definition),
    /// Any key, with values of this type.
    Map(&'m Type),
    /// Items by value or by key.
    List(&'m Type, &'m ListKind),
}

impl<'m> Place<'m> {
    pub fn new(model: &'m Model, ty: &'m Type) -> Self {
        Self { model, ty, atomic: false }
    }

    fn of_field(model: &'m Model, field: &'m Field) -> Self {
        Self { model, ty: &field.ty, atomic: field.atomic }
    }

    /// The shape, for a value that may decide it where the schema does not.
    pub fn shape(&self, value: Option<&Value>) -> Shape<'m> {
        if self.atomic {
            return Shape::Leaf;
        }
        match self.ty {
            Type::Object(id) if !self.model.get(*id).atomic => Shape::Object(self.model.get(*id)),
            Type::Map(map) if !map.atomic => Shape::Map(&map.value),
            Type::List(list) if list.kind != ListKind::Atomic => {
                Shape::List(&list.item, &list.kind)
            }
            // Values without a schema: objects by key, lists as a whole.
            Type::Raw | Type::Any | Type::SchemaOr(..)
                if matches!(value, Some(Value::Object(_) | Value::Null)) =>
            {
                Shape::Map(&Type::Any)
            }
            _ => Shape::Leaf,
        }
    }

    /// The place of a key, and whether the schema declares it by name.
    pub fn key(&self, shape: &Shape<'m>, key: &str) -> (Self, bool) {
        match shape {
            Shape::Object(definition) => match definition.field(key) {
                Some(field) => (Self::of_field(self.model, field), true),
                None => (Self::new(self.model, &Type::Any), false),
            },
            Shape::Map(value) => (Self::new(self.model, value), false),
            Shape::Leaf | Shape::List(..) => (Self::new(self.model, &Type::Any), false),
        }
    }

    /// How a list's item is called; None when it lacks every key, or is none.
    pub fn item<'a>(
        &self,
        item_type: &Type,
        kind: &ListKind,
        item: &'a Value,
    ) -> Option<Element<'a>> {
        let ListKind::Map(keys) = kind else {
            let scalar = !matches!(item, Value::Null | Value::Array(_) | Value::Object(_));
            return scalar.then(|| Element::Value(item.to_string().into()));
        };
        let item = item.as_object()?;
        let definition = match item_type {
            Type::Object(id) => Some(self.model.get(*id)),
            _ => None,
        };
        let said = keys.iter().filter_map(|key| {
            let default = || definition?.field(key)?.default.as_deref();
            Some((&**key, item.get(&**key).or_else(default)?))
        });
        let mut said: Vec<(&str, &Value)> = said.collect();
        said.sort_by_key(|(key, _)| *key);
        (!said.is_empty()).then(|| Element::Key(object_text(&said)))
    }
}

/// A JSON object of these members.
fn object_text(members: &[(&str, &Value)]) -> Box<str> {
    let mut out = Vec::with_capacity(48);
    for (i, (key, value)) in members.iter().enumerate() {
        out.push(if i == 0 { b'{' } else { b',' });
        serde_json::to_writer(&mut out, key).expect("a string is JSON");
        out.push(b':');
        serde_json::to_writer(&mut out, value).expect("a Value is JSON");
    }
    out.push(b'}');
    String::from_utf8(out).expect("JSON is text").into_boxed_str()
}

/// A map's content, None when there is nothing in it: absent, null, empty or not a map.
pub(crate) fn content(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value?.as_object().filter(|map| !map.is_empty())
}

/// A list's content, likewise.
pub(crate) fn items(value: Option<&Value>) -> Option<&Vec<Value>> {
    value?.as_array().filter(|list| !list.is_empty())
}
