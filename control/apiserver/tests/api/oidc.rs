//! Tokens of another issuer: a real one, behind TLS, in the test process.

use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rimward_control_apiserver::oidc::{
    Authentication, Authenticator, ClaimRule, IssuerConfig, Mapping, Mappings,
};
use rimward_control_store::MemoryStore;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::tls::{self, Ca, Server};

const AUDIENCE: &str = "rimward";

/// A signing key of an issuer, and how it is published.
struct Key {
    id: &'static str,
    algorithm: Algorithm,
    private: EncodingKey,
    published: Value,
}

impl Key {
    fn ec(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let point = pair.public_key_raw();
        let half = |at: usize| URL_SAFE_NO_PAD.encode(&point[at..at + 32]);
        Self {
            id,
            algorithm: Algorithm::ES256,
            private: EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(),
            published: json!({ "kid": id, "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "x": half(1), "y": half(33) }),
        }
    }

    fn rsa(id: &'static str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der.as_ref())
        );
        let public = pair.public_key();
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (n, e) = (
            number(public.modulus().big_endian_without_leading_zero()),
            number(public.exponent().big_endian_without_leading_zero()),
        );
        Self {
            id,
            algorithm: Algorithm::RS256,
            private: EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
            published: json!({ "kid": id, "kty": "RSA", "alg": "RS256", "use": "sig", "n": n, "e": e }),
        }
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(Some(self.id), claims)
    }

    fn sign_as(&self, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

/// What the issuer says, to be changed while it runs.
#[derive(Default)]
struct Said {
    url: String,
    keys: Vec<Value>,
}

struct Issuer {
    server: Server,
    said: Arc<Mutex<Said>>,
    ca_pem: String,
}

impl Issuer {
    async fn start() -> Self {
        let (ca, said) = (Ca::new(), Arc::new(Mutex::new(Said::default())));
        let answers = said.clone();
        let server = Server::simple(&ca, &["127.0.0.1"], move |seen| {
            let said = answers.lock().unwrap();
            match seen.path.as_str() {
                "/.well-known/openid-configuration" => tls::json(
                    &json!({ "issuer": said.url, "jwks_uri": format!("{}/keys", said.url) }),
                ),
                "/keys" => tls::json(&json!({ "keys": said.keys })),
                _ => tls::text(404, "text/plain", ""),
            }
        })
        .await;
        said.lock().unwrap().url = format!("https://{}", server.addr);
        Self { server, said, ca_pem: ca.pem.clone() }
    }

    fn url(&self) -> String {
        self.said.lock().unwrap().url.clone()
    }

    fn publish(&self, keys: &[&Key]) {
        self.said.lock().unwrap().keys = keys.iter().map(|k| k.published.clone()).collect();
    }

    fn claims(&self) -> Value {
        let now = Timestamp::now().as_second();
        json!({ "iss": self.url(), "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, "groups": ["dev", "ops"], "jti": "7" })
    }

    fn authenticator(&self) -> Authenticator {
        let mapping = |claim: &str| Mapping {
            claim: claim.into(),
            prefix: Some("oidc:".into()),
            ..Mapping::default()
        };
        Authenticator {
            issuer: IssuerConfig {
                url: self.url(),
                certificate_authority: Some(self.ca_pem.clone()),
                audiences: vec![AUDIENCE.into()],
                ..IssuerConfig::default()
            },
            claim_mappings: Mappings {
                username: mapping("sub"),
                groups: mapping("groups"),
                ..Mappings::default()
            },
            ..Authenticator::default()
        }
    }

    async fn cluster(&self, change: impl FnOnce(&mut Authenticator)) -> Cluster {
        let mut authenticator = self.authenticator();
        change(&mut authenticator);
        Cluster::start_on(MemoryStore::new(), |config| {
            config.authentication =
                Authentication { issuers: vec![authenticator], ..Authentication::default() };
        })
        .await
    }
}

async fn review(cluster: &Cluster, token: &str) -> Value {
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    cluster.admin.post(path, &review).await.expect(201)["status"].clone()
}

#[track_caller]
fn assert_refused(status: &Value, why: &str) {
    assert_ne!(status["authenticated"], true, "{status}");
    let error = status["error"].as_str().unwrap();
    assert!(error.contains(why), "{error}, not {why}");
}

#[tokio::test]
async fn tokens_of_an_issuer() {
    let (issuer, rsa, ec) = (Issuer::start().await, Key::rsa("r"), Key::ec("e"));
    issuer.publish(&[&rsa, &ec]);
    // What an issuer has beside: a key to encrypt with, and one of a kind that nobody knows.
    let others = [json!({ "kid": "x", "kty": "new", "use": "sig" }), {
        let mut encrypts = rsa.published.clone();
        encrypts["use"] = "enc".into();
        encrypts
    }];
    issuer.said.lock().unwrap().keys.splice(0..0, others);
    let cluster = issuer.cluster(|_| {}).await;
    for key in [&rsa, &ec] {
        let good = review(&cluster, &key.sign(&issuer.claims())).await;
        assert_eq!(good["authenticated"], true, "{good}");
        assert_eq!(good["user"]["username"], "oidc:ann");
        assert_eq!(good["user"]["groups"], json!(["oidc:dev", "oidc:ops", "system:authenticated"]));
        let id = &good["user"]["extra"]["authentication.kubernetes.io/credential-id"];
        assert_eq!(*id, json!(["JTI=7"]));
    }
    let with = |field: &str, value: Value| {
        let mut claims = issuer.claims();
        claims[field] = value;
        rsa.sign(&claims)
    };
    let now = Timestamp::now().as_second();
    let both = review(&cluster, &with("aud", json!(["other", AUDIENCE]))).await;
    assert_eq!(both["authenticated"], true, "{both}");
    assert_refused(&review(&cluster, &with("aud", json!("other"))).await, "InvalidAudience");
    assert_refused(&review(&cluster, &with("exp", json!(now - 1))).await, "ExpiredSignature");
    assert_refused(&review(&cluster, &with("nbf", json!(now + 3600))).await, "ImmatureSignature");
    assert_refused(&review(&cluster, &with("sub", Value::Null)).await, "claim \"sub\" is missing");
    // Nobody else's, and not signed at all.
    let stranger = review(&cluster, &with("iss", json!("https://elsewhere.example"))).await;
    assert_ne!(stranger["authenticated"], true, "{stranger}");
    let token = rsa.sign(&issuer.claims());
    let (signed, _) = token.rsplit_once('.').unwrap();
    let forged = review(&cluster, &format!("{signed}.{}", URL_SAFE_NO_PAD.encode([7; 256]))).await;
    assert_refused(&forged, "InvalidSignature");
    let claims = URL_SAFE_NO_PAD.encode(issuer.claims().to_string());
    let none = URL_SAFE_NO_PAD.encode(json!({ "alg": "none" }).to_string());
    let unsigned = review(&cluster, &format!("{none}.{claims}.")).await;
    assert_ne!(unsigned["authenticated"], true, "{unsigned}");
    // The issuer's public key is no secret to sign with.
    let header = Header { kid: Some("r".into()), ..Header::new(Algorithm::HS256) };
    let secret = EncodingKey::from_secret(rsa.published["n"].as_str().unwrap().as_bytes());
    let confused = jsonwebtoken::encode(&header, &issuer.claims(), &secret).unwrap();
    assert_refused(&review(&cluster, &confused).await, "HS256");
}

#[tokio::test]
async fn keys_are_rotated() {
    let (issuer, old, new) = (Issuer::start().await, Key::ec("old"), Key::ec("new"));
    issuer.publish(&[&old]);
    let cluster = issuer.cluster(|_| {}).await;
    for _ in 0..3 {
        assert_eq!(review(&cluster, &old.sign(&issuer.claims())).await["authenticated"], true);
    }
    assert_eq!(issuer.server.take().len(), 2, "the configuration and the keys, once");
    issuer.publish(&[&new]);
    assert_eq!(review(&cluster, &new.sign(&issuer.claims())).await["authenticated"], true);
    assert_eq!(issuer.server.take().len(), 2, "a key that is not known is looked for");
    assert_refused(&review(&cluster, &old.sign(&issuer.claims())).await, "does not have");
    let unknown = Key::ec("unknown");
    for _ in 0..20 {
        assert_refused(&review(&cluster, &unknown.sign(&issuer.claims())).await, "does not have");
    }
    assert_eq!(issuer.server.take().len(), 0, "unknown keys make no storm");
    // A token that names no key is of any of them.
    let nameless = new.sign_as(None, &issuer.claims());
    assert_eq!(review(&cluster, &nameless).await["authenticated"], true);
}

#[tokio::test]
async fn an_issuer_that_cannot_be_read_lets_nobody_in() {
    let (issuer, key) = (Issuer::start().await, Key::ec("k"));
    issuer.publish(&[&key]);
    let token = key.sign(&issuer.claims());
    let distrusted = issuer.cluster(|a| a.issuer.certificate_authority = Some(Ca::new().pem)).await;
    assert_refused(&review(&distrusted, &token).await, "cannot be read");
    // It says that it is somebody else.
    let cluster = issuer.cluster(|_| {}).await;
    let url = std::mem::replace(
        &mut issuer.said.lock().unwrap().url,
        "https://elsewhere.example".to_owned(),
    );
    assert_refused(&review(&cluster, &token).await, "not of");
    issuer.said.lock().unwrap().url = url;
}

#[tokio::test]
async fn what_an_operator_may_ask_for() {
    let (issuer, rsa, ec) = (Issuer::start().await, Key::rsa("r"), Key::ec("e"));
    issuer.publish(&[&rsa, &ec]);
    let cluster = issuer
        .cluster(|a| {
            a.signing_algorithms = vec!["RS256".into()];
            let rule = ClaimRule {
                claim: "hd".into(),
                required_value: "example.com".into(),
                ..ClaimRule::default()
            };
            a.claim_validation_rules.push(rule);
        })
        .await;
    let mut claims = issuer.claims();
    assert_refused(&review(&cluster, &rsa.sign(&claims)).await, "required claim hd");
    claims["hd"] = "example.com".into();
    assert_eq!(review(&cluster, &rsa.sign(&claims)).await["authenticated"], true);
    assert_refused(&review(&cluster, &ec.sign(&claims)).await, "ES256");
    // Their rights are those of their groups.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "ops" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "oidc:ops" }],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    cluster.admin.post(bindings, &binding).await.expect(201);
    let user = review(&cluster, &rsa.sign(&claims)).await["user"].clone();
    let question = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": { "user": user["username"], "groups": user["groups"], "resourceAttributes": { "verb": "list", "resource": "pods" } },
    });
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let may = cluster.admin.post(reviews, &question).await.expect(201);
    assert_eq!(may["status"]["allowed"], true, "{may}");
}
