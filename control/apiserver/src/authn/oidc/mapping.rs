//! From the claims of a verified token to a user. Pure; what an expression may cost is bounded.

use rimward_api::UserInfo;
use rimward_control_cel::limits::PER_REQUEST;
use rimward_control_cel::{Bindings, Budget, Environment, Program, Type, authentication};
use serde_json::{Map, Value, json};

use super::config::{Authenticator, ClaimRule, Mapping, UserRule};

/// What of an [`Authenticator`] is about claims, compiled.
pub struct Mapper {
    claim_rules: Vec<(ClaimRule, Option<Program>)>,
    username: Source,
    groups: Option<Source>,
    uid: Option<Source>,
    extra: Vec<(String, Program)>,
    user_rules: Vec<(UserRule, Program)>,
}

enum Source {
    Claim { name: String, prefix: String },
    Expression(Program),
}

impl Mapper {
    /// # Errors
    /// An expression does not compile, or not to what it is for.
    pub fn new(config: &Authenticator) -> Result<Self, String> {
        let mappings = &config.claim_mappings;
        let text = [Type::String, Type::Dyn];
        let texts = [Type::String, Type::list(Type::String), Type::list(Type::Dyn), Type::Dyn];
        let source = |field: &str, mapping: &Mapping, types: &[Type]| {
            Source::of(mapping, types).map_err(|e| format!("claimMappings.{field}: {e}"))
        };
        let claim_rules = config.claim_validation_rules.iter().map(|rule| {
            let program = (!rule.expression.is_empty())
                .then(|| compile(&authentication::CLAIMS, &rule.expression, &[Type::Bool]))
                .transpose()
                .map_err(|e| format!("claimValidationRules: {e}"))?;
            Ok::<_, String>((rule.clone(), program))
        });
        let extra = mappings.extra.iter().map(|extra| {
            let program = compile(&authentication::CLAIMS, &extra.value_expression, &texts)
                .map_err(|e| format!("claimMappings.extra[{}]: {e}", extra.key))?;
            Ok::<_, String>((extra.key.clone(), program))
        });
        let user_rules = config.user_validation_rules.iter().map(|rule| {
            let program = compile(&authentication::USER, &rule.expression, &[Type::Bool])
                .map_err(|e| format!("userValidationRules: {e}"))?;
            Ok::<_, String>((rule.clone(), program))
        });
        Ok(Self {
            claim_rules: claim_rules.collect::<Result<_, _>>()?,
            username: source("username", &mappings.username, &text)?
                .ok_or("claimMappings.username is missing")?,
            groups: source("groups", &mappings.groups, &texts)?,
            uid: source("uid", &mappings.uid, &text)?,
            extra: extra.collect::<Result<_, _>>()?,
            user_rules: user_rules.collect::<Result<_, _>>()?,
        })
    }

    /// The user that verified claims name.
    ///
    /// # Errors
    /// The claims do not hold what is asked of them.
    pub fn user(&self, claims: &Map<String, Value>) -> Result<UserInfo, String> {
        let whole = Value::Object(claims.clone());
        let bindings = authentication::claims(&whole);
        let mut budget = Budget::new(PER_REQUEST);
        for (rule, program) in &self.claim_rules {
            match program {
                None if claims.get(&rule.claim).and_then(Value::as_str)
                    == Some(rule.required_value.as_str()) => {}
                None => {
                    return Err(format!(
                        "required claim {} is not {:?}",
                        rule.claim, rule.required_value
                    ));
                }
                Some(program) => {
                    holds(program, &bindings, &mut budget, &rule.expression, &rule.message)?;
                }
            }
        }
        let name = match &self.username {
            Source::Claim { name, prefix } => format!("{prefix}{}", user_name(claims, name)?),
            Source::Expression(program) => match program.eval_json(&bindings, &mut budget) {
                Ok(Value::String(name)) if !name.is_empty() => name,
                Ok(Value::String(_)) => return Err("username expression gave an empty text".into()),
                Ok(_) => return Err("username expression gave no text".into()),
                Err(e) => return Err(format!("error evaluating username claim expression: {e}")),
            },
        };
        let groups = match &self.groups {
            None => Vec::new(),
            Some(source) => source.texts("groups", claims, &bindings, &mut budget)?,
        };
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let mut user = UserInfo::authenticated(name, &groups);
        if let Some(source) = &self.uid {
            let found = source.texts("uid", claims, &bindings, &mut budget)?;
            user.uid = found.into_iter().next().ok_or("the uid's claim is missing")?;
        }
        for (key, program) in &self.extra {
            let found = program
                .eval_json(&bindings, &mut budget)
                .map_err(|e| format!("error evaluating extra {key}: {e}"))?;
            let values: Vec<String> =
                texts(key, &found)?.into_iter().filter(|v| !v.is_empty()).collect();
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        if let Some(id) = claims.get("jti").and_then(Value::as_str).filter(|id| !id.is_empty()) {
            let key = "authentication.kubernetes.io/credential-id".to_owned();
            user.extra.insert(key, vec![format!("JTI={id}")]);
        }
        self.check_user(&user, &mut budget)?;
        Ok(user)
    }

    fn check_user(&self, user: &UserInfo, budget: &mut Budget) -> Result<(), String> {
        if self.user_rules.is_empty() {
            return Ok(());
        }
        let shown = json!({
            "username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
        });
        let bindings = authentication::user(&shown);
        self.user_rules.iter().try_for_each(|(rule, program)| {
            holds(program, &bindings, budget, &rule.expression, &rule.message)
        })
    }
}

/// A name that comes from an email address must be one that the issuer verified, if it says so at all.
fn user_name<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<&'a str, String> {
    let name = claims.get(claim).and_then(Value::as_str).filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| format!("claim {claim:?} is missing"))?;
    match claims.get("email_verified") {
        Some(verified) if claim == "email" && *verified != true => {
            Err("the email address is not verified".to_owned())
        }
        _ => Ok(name),
    }
}

impl Source {
    fn of(mapping: &Mapping, types: &[Type]) -> Result<Option<Self>, String> {
        if mapping.is_nothing() {
            return Ok(None);
        }
        if !mapping.expression.is_empty() {
            let program = compile(&authentication::CLAIMS, &mapping.expression, types)?;
            return Ok(Some(Self::Expression(program)));
        }
        let prefix = mapping.prefix.clone().unwrap_or_default();
        Ok(Some(Self::Claim { name: mapping.claim.clone(), prefix }))
    }

    fn texts<'a>(
        &'a self,
        what: &str,
        claims: &Map<String, Value>,
        bindings: &Bindings<'a>,
        budget: &mut Budget,
    ) -> Result<Vec<String>, String> {
        match self {
            Self::Claim { name, prefix } => {
                let found = texts(name, claims.get(name).unwrap_or(&Value::Null))?;
                Ok(found.into_iter().map(|text| format!("{prefix}{text}")).collect())
            }
            Self::Expression(program) => {
                let found = program
                    .eval_json(bindings, budget)
                    .map_err(|e| format!("error evaluating {what} claim expression: {e}"))?;
                Ok(texts(what, &found)?.into_iter().filter(|t| !t.is_empty()).collect())
            }
        }
    }
}

/// One text or a list of them; nothing is none.
fn texts(what: &str, value: &Value) -> Result<Vec<String>, String> {
    let one = |value: &Value| {
        value.as_str().map(str::to_owned).ok_or_else(|| format!("{what}: {value} is not a string"))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn compile(environment: &Environment, text: &str, types: &[Type]) -> Result<Program, String> {
    environment.compile_to(text, types).map_err(|e| format!("expression {text:?}: {e}"))
}

fn holds<'a>(
    program: &'a Program,
    bindings: &Bindings<'a>,
    budget: &mut Budget,
    expression: &str,
    message: &str,
) -> Result<(), String> {
    match program.eval_json(bindings, budget) {
        Ok(Value::Bool(true)) => Ok(()),
        Ok(_) if message.is_empty() => Err(format!("validation expression '{expression}' failed")),
        Ok(_) => Err(format!("validation expression '{expression}' failed: {message}")),
        Err(e) => Err(format!("validation expression '{expression}': {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::parse;
    use super::*;

    #[track_caller]
    fn mapper(mappings: &str) -> Result<Mapper, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer: {{url: 'https://issuer.example', audiences: [rimward]}}\n{mappings}"
        );
        let config = parse(&text).expect("reads").issuers.remove(0);
        config.check()?;
        Mapper::new(&config)
    }

    #[track_caller]
    fn check(mapper: &Mapper, claims: Value, expected: Result<(&str, &[&str]), &str>) {
        let claims = claims.as_object().cloned().expect("an object");
        match (mapper.user(&claims), expected) {
            (Ok(user), Ok((name, groups))) => {
                assert_eq!(
                    (user.name.as_str(), user.groups),
                    (name, groups.iter().map(|g| (*g).to_owned()).collect())
                );
            }
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn claims() {
        let by_claims = mapper(
            "  claimValidationRules: [{claim: hd, requiredValue: example.com}]\n  claimMappings:\n    username: {claim: email, prefix: 'oidc:'}\n    groups: {claim: groups, prefix: 'oidc:'}\n",
        )
        .expect("is good");
        let check = |claims, expected| check(&by_claims, claims, expected);
        check(
            json!({ "hd": "example.com", "email": "a@x", "groups": ["g"] }),
            Ok(("oidc:a@x", &["oidc:g", "system:authenticated"])),
        );
        check(
            json!({ "hd": "example.com", "email": "a@x", "groups": "g" }),
            Ok(("oidc:a@x", &["oidc:g", "system:authenticated"])),
        );
        check(
            json!({ "hd": "example.com", "email": "a@x" }),
            Ok(("oidc:a@x", &["system:authenticated"])),
        );
        check(json!({ "hd": "other", "email": "a@x" }), Err("required claim hd"));
        check(json!({ "hd": "example.com" }), Err("claim \"email\" is missing"));
        let unverified = json!({ "hd": "example.com", "email": "a@x", "email_verified": false });
        check(unverified, Err("not verified"));
        check(json!({ "hd": "example.com", "email": "a@x", "groups": [1] }), Err("not a string"));
    }

    #[test]
    fn expressions() {
        let by_expressions = mapper(
            r#"  claimValidationRules: [{expression: 'claims.exp - claims.nbf <= 86400', message: 'too long'}]
  claimMappings:
    username: {expression: '"ext:" + claims.sub'}
    groups: {expression: 'claims.roles.split(",")'}
    uid: {expression: 'claims.sub'}
    extra: [{key: 'example.com/tenant', valueExpression: 'claims.?tenant.orValue("")'}]
  userValidationRules: [{expression: "!user.username.startsWith('ext:system')", message: 'reserved'}]
"#,
        )
        .expect("is good");
        let claims = json!({ "sub": "ann", "roles": "a,b", "nbf": 10, "exp": 20, "tenant": "t1" });
        let user = by_expressions.user(claims.as_object().expect("an object")).expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("ext:ann", "ann"));
        assert_eq!(user.groups, ["a", "b", "system:authenticated"]);
        assert_eq!(user.extra["example.com/tenant"], ["t1"]);
        let check = |claims, expected| check(&by_expressions, claims, expected);
        check(
            json!({ "sub": "ann", "roles": "", "nbf": 1, "exp": 2 }),
            Ok(("ext:ann", &["system:authenticated"])),
        );
        check(json!({ "sub": "ann", "roles": "", "nbf": 1, "exp": 90000 }), Err("too long"));
        check(json!({ "sub": "system:x", "roles": "", "nbf": 1, "exp": 2 }), Err("reserved"));
        check(json!({ "roles": "", "nbf": 1, "exp": 2 }), Err("username"));
    }

    #[test]
    fn what_is_no_mapping() {
        let check = |mappings: &str, part: &str| match mapper(mappings) {
            Ok(_) => panic!("accepted: {mappings}"),
            Err(why) => assert!(why.contains(part), "{why}"),
        };
        check("  claimMappings: {username: {}}\n", "needs a claim or an expression");
        check("  claimMappings: {username: {claim: sub}}\n", "prefix is required");
        check(
            "  claimMappings: {username: {claim: sub, prefix: '', expression: 'x'}}\n",
            "exclude",
        );
        check("  claimMappings: {username: {expression: 'nothing.sub'}}\n", "nothing");
        check("  claimMappings: {username: {expression: '1 + 1'}}\n", "must evaluate to");
        check("  claimMappings: {username: {expression: 'claims.email'}}\n", "email_verified");
        check(
            "  claimMappings:\n    username: {expression: 'claims.sub'}\n    extra: [{key: 'kubernetes.io/x', valueExpression: '\"1\"'}]\n",
            "reserved",
        );
    }
}
