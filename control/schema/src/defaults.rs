//! The defaults that the schema itself declares (`default` markers of the Go types).

use serde_json::Value;

use crate::model::{DefId, Definition, Field, Model, Type};

/// Fills declared defaults into objects that are there; never makes an object to put one in. For
/// built-in kinds: a custom one fills in its defaults by its own schema, nulls and all.
/// `SetDefaults_*` functions of Kubernetes are the kinds' business.
pub fn apply_defaults(model: &Model, definition: DefId, object: &mut Value) {
    fill(model, &Type::Object(definition), object);
}

fn fill(model: &Model, ty: &Type, value: &mut Value) {
    match (ty, value) {
        (Type::Object(id), Value::Object(map)) => {
            let fields = &model.get(*id).fields;
            for field in model.defaulting(*id).iter().map(|index| &fields[usize::from(*index)]) {
                match (map.get_mut(&*field.name), &field.default) {
                    (Some(Value::Null), Some(default)) => {
                        drop(map.insert((*field.name).to_owned(), (**default).clone()))
                    }
                    // A default stands for the zero value of a string, as for none.
                    (Some(Value::String(text)), Some(default)) if text.is_empty() => {
                        map.insert((*field.name).to_owned(), (**default).clone());
                    }
                    (Some(value), _) => fill(model, &field.ty, value),
                    (None, Some(default)) => {
                        drop(map.insert((*field.name).to_owned(), (**default).clone()))
                    }
                    (None, None) => {}
                }
            }
        }
        (Type::List(list), Value::Array(items)) if reaches_object(&list.item) => {
            items.iter_mut().for_each(|item| fill(model, &list.item, item));
        }
        (Type::Map(map), Value::Object(values)) if reaches_object(&map.value) => {
            values.values_mut().for_each(|value| fill(model, &map.value, value));
        }
        _ => {}
    }
}

fn reaches_object(ty: &Type) -> bool {
    match ty {
        Type::Object(_) => true,
        Type::List(list) => reaches_object(&list.item),
        Type::Map(map) => reaches_object(&map.value),
        _ => false,
    }
}

impl Model {
    /// The fields of a definition that have a default themselves or somewhere below: few of many.
    fn defaulting(&self, id: DefId) -> &[u16] {
        let all = self.defaulting.get_or_init(|| find_defaulting(self));
        all.get(id.0 as usize).map_or(&[], |fields| fields)
    }
}

fn find_defaulting(model: &Model) -> Box<[Box<[u16]>]> {
    let found = find_defaulted(model);
    let of = |definition: &Definition| {
        let concerned = |field: &Field| {
            field.default.is_some() || object_of(&field.ty).is_some_and(|id| found[id.0 as usize])
        };
        (0..).zip(&definition.fields).filter(|(_, f)| concerned(f)).map(|(i, _)| i).collect()
    };
    model.definitions().map(|(_, definition)| of(definition)).collect()
}

/// Whether a default is declared in each definition or anywhere below it.
fn find_defaulted(model: &Model) -> Vec<bool> {
    let mut found = vec![false; model.definitions().count()];
    loop {
        let mut changed = false;
        for (id, definition) in model.definitions() {
            let at = id.0 as usize;
            let has = |ty: &Type| object_of(ty).is_some_and(|id| found[id.0 as usize]);
            if !found[at] && definition.fields.iter().any(|f| f.default.is_some() || has(&f.ty)) {
                found[at] = true;
                changed = true;
            }
        }
        if !changed {
            return found;
        }
    }
}

fn object_of(ty: &Type) -> Option<DefId> {
    match ty {
        Type::Object(id) => Some(*id),
        Type::List(list) => object_of(&list.item),
        Type::Map(map) => object_of(&map.value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::builtin;

    #[test]
    fn declared_defaults() {
        #[track_caller]
        fn check(definition: &str, mut object: Value, expected: Value) {
            apply_defaults(builtin(), builtin().expect(definition), &mut object);
            assert_eq!(object, expected);
        }
        let port = |protocol: &str| json!({"containerPort": 80, "protocol": protocol});
        check(
            "io.k8s.api.core.v1.Pod",
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}, port("UDP"), port("")]}]}}),
            json!({"spec": {"containers": [{"name": "c", "ports": [port("TCP"), port("UDP"), port("TCP")]}]}}),
        );
        check("io.k8s.api.core.v1.Pod", json!({"spec": null}), json!({"spec": null}));
        check(
            "io.k8s.api.core.v1.Service",
            json!({"spec": {"ports": [{"port": 1}]}}),
            json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}]}}),
        );
    }
}
