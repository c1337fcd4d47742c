//! What an expression may cost at worst, given how large its schema lets values become. A rule of a
//! CustomResourceDefinition that may cost too much is refused when the definition is written, not
//! when somebody stores a large object.
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#resource-use-by-validation-functions>

use std::sync::Arc;

use crate::ast::{Call, Comprehension, Expr, Literal, Macro, Node};
use crate::schema::{REQUEST_BYTES_MAX, Schema};

/// How large a value may be.
#[derive(Clone, Debug)]
struct Shape {
    /// Bytes, elements or entries.
    size: u64,
    /// Of its elements.
    item: Option<Arc<Shape>>,
    schema: Option<Arc<Schema>>,
}

impl Shape {
    fn plain(size: u64) -> Self {
        Self { size, item: None, schema: None }
    }

    fn of(schema: &Arc<Schema>) -> Self {
        Self { size: schema.size_max, item: None, schema: Some(schema.clone()) }
    }

    fn unknown() -> Self {
        Self::plain(REQUEST_BYTES_MAX)
    }

    fn element(&self) -> Self {
        if let Some(item) = &self.item {
            return (**item).clone();
        }
        let schema = self.schema.as_ref();
        match schema.and_then(|s| s.items.as_ref().or(s.additional.as_ref())) {
            Some(items) => Self::of(items),
            None => Self::plain(self.size),
        }
    }

    fn field(&self, name: &str) -> Self {
        match &self.schema {
            Some(schema) => match schema.property(name) {
                Some(property) => Self::of(&property.schema),
                None => self.element(),
            },
            None => self.element(),
        }
    }
}

/// The worst cost of one evaluation.
pub fn worst(expr: &Expr, variables: &[(&str, &Arc<Schema>)]) -> u64 {
    let known = variables.iter().map(|(name, schema)| ((*name).to_owned(), Shape::of(schema)));
    let mut estimate = Estimate { cost: 0, names: known.collect() };
    estimate.expression(expr);
    estimate.cost
}

struct Estimate {
    cost: u64,
    names: Vec<(String, Shape)>,
}

fn tenth(size: u64) -> u64 {
    size.div_ceil(10)
}

impl Estimate {
    fn pay(&mut self, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
    }

    fn expression(&mut self, expr: &Expr) -> Shape {
        match &expr.node {
            Node::Literal(Literal::String(text)) => Shape::plain(text.len() as u64),
            Node::Literal(Literal::Bytes(bytes)) => Shape::plain(bytes.len() as u64),
            Node::Literal(_) | Node::TypeName(_) => Shape::plain(1),
            Node::Ident(name) => {
                self.pay(1);
                let known = self.names.iter().rev().find(|(known, _)| known == name);
                known.map_or_else(Shape::unknown, |(_, shape)| shape.clone())
            }
            Node::Select(select) => {
                let operand = self.expression(&select.operand);
                self.pay(u64::from(!select.test));
                if select.test { Shape::plain(1) } else { operand.field(&select.field) }
            }
            Node::Index { operand, index, .. } => {
                let operand = self.expression(operand);
                self.expression(index);
                self.pay(1);
                match &index.node {
                    Node::Literal(Literal::String(name)) => operand.field(name),
                    _ => operand.element(),
                }
            }
            Node::Call(call) => self.call(call),
            Node::And(all) | Node::Or(all) => {
                self.pay(all.len() as u64 - 1);
                for part in all {
                    self.expression(part);
                }
                Shape::plain(1)
            }
            Node::Conditional(parts) => self.conditional(parts),
            Node::List(items) => {
                self.pay(10);
                let shapes: Vec<Shape> = items.iter().map(|i| self.expression(&i.value)).collect();
                listed(shapes)
            }
            Node::Map(entries) => {
                self.pay(30);
                let mut shapes = Vec::new();
                for entry in entries {
                    self.expression(&entry.key);
                    shapes.push(self.expression(&entry.value));
                }
                listed(shapes)
            }
            Node::Struct { fields, .. } => {
                self.pay(40);
                for field in fields {
                    self.expression(&field.value);
                }
                Shape::plain(1)
            }
            Node::Comprehension(comprehension) => self.comprehension(comprehension),
            Node::OptMap(opt_map) => {
                let target = self.expression(&opt_map.target);
                self.names.push((opt_map.name.clone(), target));
                let body = self.expression(&opt_map.body);
                self.names.pop();
                body
            }
        }
    }

    /// Only the dearer branch is taken.
    #[inline(never)]
    fn conditional(&mut self, parts: &[Expr; 3]) -> Shape {
        self.expression(&parts[0]);
        self.pay(1);
        let before = self.cost;
        let yes = self.expression(&parts[1]);
        let after_yes = self.cost;
        self.cost = before;
        let no = self.expression(&parts[2]);
        self.cost = self.cost.max(after_yes);
        if yes.size >= no.size { yes } else { no }
    }

    #[inline(never)]
    fn comprehension(&mut self, of: &Comprehension) -> Shape {
        let range = self.expression(&of.range);
        let element = range.element();
        let over_list = range.schema.as_ref().is_some_and(|s| s.items.is_some());
        let known = self.names.len();
        let key = Shape::plain(if over_list { 1 } else { element.size });
        let first = if of.second.is_some() { key } else { element.clone() };
        self.names.push((of.first.clone(), first.clone()));
        if let Some(second) = &of.second {
            self.names.push((second.clone(), element));
        }
        let before = std::mem::take(&mut self.cost);
        if let Some(condition) = &of.condition {
            self.expression(condition);
        }
        let made = of.transform.as_ref().map(|e| self.expression(e));
        let round = self.cost.saturating_add(3);
        self.cost = before;
        self.pay(round.saturating_mul(range.size));
        self.names.truncate(known);
        match of.kind {
            Macro::All | Macro::Exists | Macro::ExistsOne => Shape::plain(1),
            Macro::Filter => range,
            _ => Shape {
                size: range.size,
                item: Some(Arc::new(made.unwrap_or_else(Shape::unknown))),
                schema: None,
            },
        }
    }

    #[inline(never)]
    fn call(&mut self, call: &Call) -> Shape {
        let args: Vec<Shape> =
            call.target.iter().chain(&call.args).map(|arg| self.expression(arg)).collect();
        self.pay(1);
        let size = |i: usize| args.get(i).map_or(1, |shape| shape.size);
        let first = || args.first().cloned().unwrap_or_else(Shape::unknown);
        let grown = |by: u64| Shape { size: size(0).saturating_add(by), ..first() };
        match call.function.as_str() {
            "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => {
                self.pay(tenth(size(0).min(size(1))));
                Shape::plain(1)
            }
            "@in" => {
                self.pay(size(1));
                Shape::plain(1)
            }
            "_+_" => {
                self.pay(tenth(size(0).saturating_add(size(1))));
                grown(size(1))
            }
            "matches" | "find" | "findAll" => {
                let states = size(1).div_ceil(4);
                self.pay(tenth(size(0) + 1).saturating_mul(states));
                match call.function.as_str() {
                    "matches" => Shape::plain(1),
                    _ => first(),
                }
            }
            "contains" => {
                self.pay(tenth(size(0)).saturating_add(tenth(size(1))));
                Shape::plain(1)
            }
            "startsWith" | "endsWith" => {
                self.pay(tenth(size(1)));
                Shape::plain(1)
            }
            "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "distinct"
            | "sort" => {
                self.pay(size(0));
                match call.function.as_str() {
                    "distinct" => {
                        self.pay(size(0).saturating_mul(size(0)));
                        first()
                    }
                    "sort" => first(),
                    "min" | "max" => first().element(),
                    _ => Shape::plain(1),
                }
            }
            "sets.contains" | "sets.intersects" | "sets.equivalent" => {
                let both = size(0).saturating_mul(size(1));
                self.pay(if call.function == "sets.equivalent" {
                    both.saturating_mul(2)
                } else {
                    both
                });
                Shape::plain(1)
            }
            "replace" => {
                self.pay(tenth(size(0).saturating_mul(2)));
                grown(size(0).saturating_mul(size(2)))
            }
            "split" => {
                self.pay(tenth(size(0).saturating_mul(2)));
                Shape { size: size(0), item: Some(Arc::new(Shape::plain(size(0)))), schema: None }
            }
            "join" => {
                let whole = size(0).saturating_mul(first().element().size.saturating_add(size(1)));
                self.pay(tenth(whole));
                Shape::plain(whole)
            }
            "size" => Shape::plain(1),
            "type" | "int" | "uint" | "double" | "bool" | "!_" | "-_" => Shape::plain(1),
            // The rest reads its first argument once and gives no more than that.
            _ => {
                self.pay(tenth(size(0)));
                first()
            }
        }
    }
}

fn listed(shapes: Vec<Shape>) -> Shape {
    let size = shapes.len() as u64;
    let largest = shapes.into_iter().max_by_key(|shape| shape.size);
    Shape { size, item: largest.map(Arc::new), schema: None }
}
