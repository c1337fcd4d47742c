//! Without a control plane, and when it says no.

use super::*;
use crate::Error;
use rimward_tunnel::CloseCode;

/// A port where nobody answers.
fn nowhere() -> String {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn boots_from_the_ledger() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    {
        let (agent, mut node, shutdown) = control.agent(dir.path()).await;
        let pods = Arc::new(Recording::default());
        agent.attach(pods.clone(), Arc::new(Loopback));
        say_delta(&mut node, "Secret", &[object("s", "us", "1")], &[]).await;
        say_delta(&mut node, "Pod", &[pod("web", "u1")], &[]).await;
        say_synced(&mut node).await;
        pods.until(&["set u1", "synced"]).await;
        shutdown.cancel();
        agent.ended().await.unwrap();
    }
    let shutdown = CancellationToken::new();
    let config = Config { server: nowhere(), ..control.config(dir.path()) };
    let agent = start_when_free(&config, &shutdown).await;
    assert_eq!(agent.welcome().await.unwrap().pod_cidr, "10.42.7.0/24");
    let pods = Arc::new(Recording::default());
    agent.attach(pods.clone(), Arc::new(Loopback));
    pods.until(&["set u1", "synced"]).await;
    assert!(agent.objects().secret("a", "s").await.is_ok());
    assert!(!agent.is_connected());
    let unknown = agent.objects().secret("a", "t").await.unwrap_err().to_string();
    assert!(unknown.contains("not connected"), "{unknown}");
    shutdown.cancel();
    agent.ended().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_starts_again_is_ready_when_it_says_hello() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    {
        let (agent, mut node, shutdown) = control.agent(dir.path()).await;
        let pods = Arc::new(Recording::default());
        agent.attach(pods.clone(), Arc::new(Loopback));
        say_synced(&mut node).await;
        pods.until(&["synced"]).await;
        shutdown.cancel();
        agent.ended().await.unwrap();
    }
    let shutdown = CancellationToken::new();
    let agent = start_when_free(&control.config(dir.path()), &shutdown).await;
    // It has the time to say something too early.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    agent.attach(Arc::new(Recording::default()), Arc::new(Loopback));
    let node = control.connected().await;
    let said: Value = serde_json::from_slice(&node.hello.node).unwrap();
    let conditions = said["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["status"], "True", "{ready}");
}

/// The earlier agent's tasks let go of the ledger a moment after it has ended.
async fn start_when_free(config: &Config, shutdown: &CancellationToken) -> Agent {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match Agent::start(config.clone(), shutdown.clone()) {
            Ok(agent) => return agent,
            Err(Error::Ledger(_)) if tokio::time::Instant::now() < deadline => {
                tokio::task::yield_now().await
            }
            Err(cause) => panic!("{cause}"),
        }
    }
}

#[tokio::test]
async fn a_refused_token_ends_the_agent_with_a_message() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let agent = Agent::start(control.config(dir.path()), CancellationToken::new()).unwrap();
    let Arrival::Join(request) = control.arrival().await else { panic!("not a join") };
    request.refuse(CloseCode::Denied, "the token is not valid");
    let cause =
        tokio::time::timeout(Duration::from_secs(20), agent.ended()).await.unwrap().unwrap_err();
    assert!(cause.to_string().contains("the token is not valid"), "{cause}");
    assert!(agent.welcome().await.is_none());
}

#[tokio::test]
async fn a_busy_control_plane_is_asked_again() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let _agent = Agent::start(control.config(dir.path()), CancellationToken::new()).unwrap();
    let Arrival::Join(request) = control.arrival().await else { panic!("not a join") };
    request.refuse(CloseCode::Unavailable, "not now");
    control.let_join().await;
    control.connected().await;
}

#[tokio::test]
async fn without_a_token_an_unjoined_node_says_what_it_needs() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let config = Config { token: None, ..control.config(dir.path()) };
    let agent = Agent::start(config, CancellationToken::new()).unwrap();
    let cause = agent.ended().await.unwrap_err();
    assert!(matches!(*cause, Error::NotJoined), "{cause}");
}

#[tokio::test]
async fn another_name_than_joined_is_refused() {
    let (control, dir) = (ControlPlane::new(), tempfile::tempdir().unwrap());
    let (agent, _node, shutdown) = control.agent(dir.path()).await;
    shutdown.cancel();
    agent.ended().await.unwrap();
    drop(agent);
    let shutdown = CancellationToken::new();
    let config = Config { name: "edge-2".into(), ..control.config(dir.path()) };
    let agent = start_when_free(&config, &shutdown).await;
    let cause = agent.ended().await.unwrap_err().to_string();
    assert!(cause.contains("edge-1") && cause.contains("edge-2"), "{cause}");
}
