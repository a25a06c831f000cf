//! Reads images as the tool does and prints what came of it as JSON:
//! `facts CONF USER KEYRING SECONDS [POOL/[NAMESPACE/]IMAGE…]`. The tests use it to see how a process ends.

use rbd_preflight::ceph::read_cluster::read_cluster;
use rbd_preflight::exit::Exit;
use rbd_preflight::pve::connection::Connection;
use rbd_preflight::rbd::spec::Spec;
use std::time::{Duration, Instant};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [conf, user, keyring, seconds, images @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: facts CONF USER KEYRING SECONDS [POOL/[NAMESPACE/]IMAGE…]");
    };
    let connection = Connection {
        conf: Some(conf.clone()),
        mon_host: None,
        user: user.clone(),
        keyring: Some(keyring.clone()),
    };
    let specs = images.iter().map(|text| spec(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let reading = read_cluster(&connection, &specs, Duration::from_secs(seconds.parse()?));
    let milliseconds = begun.elapsed().as_millis();
    println!("{}", serde_json::json!({ "milliseconds": milliseconds, "reading": reading }));
    // As the tool itself ends, whatever is still being closed.
    Exit::Ready.leave()
}

fn spec(text: &str) -> anyhow::Result<Spec> {
    let parts: Vec<&str> = text.split('/').collect();
    let (pool, namespace, image) = match parts.as_slice() {
        [pool, image] => (pool, None, image),
        [pool, namespace, image] => (pool, Some((*namespace).to_owned()), image),
        _ => anyhow::bail!("not POOL/[NAMESPACE/]IMAGE: {text}"),
    };
    Ok(Spec { pool: (*pool).to_owned(), namespace, image: (*image).to_owned() })
}
