//! reqwest: `vkog-client-reqwest URL TLS_URL CA SOCKET` prints one line for each feature.

use std::error::Error;
use std::io::{BufRead, BufReader, Cursor};
use std::time::Duration;

use reqwest::blocking::{Body, Client, ClientBuilder, Response};
use reqwest::header::{ETAG, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Method};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

struct Features {
    client: Client,
    url: String,
    tls_url: String,
    ca: String,
    socket: String,
    large: Vec<u8>,
    too_large: Vec<u8>,
}

fn builder() -> ClientBuilder {
    Client::builder().no_proxy().timeout(Duration::from_secs(60))
}

fn same<T: PartialEq + std::fmt::Debug>(actual: T, expected: T) -> Result {
    if actual == expected { Ok(()) } else { Err(format!("expected {expected:?}, got {actual:?}").into()) }
}

fn send(
    client: &Client,
    status: u16,
    method: Method,
    url: &str,
    body: Body,
    fields: &[(&str, &str)],
) -> Result<Response> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    let request = client.request(method.clone(), url).headers(headers);
    let response = if method == Method::GET { request.send()? } else { request.body(body).send()? };
    same(response.status().as_u16(), status)?;
    Ok(response)
}

/// The value of the next field of that name in an event stream.
fn field(lines: &mut impl Iterator<Item = std::io::Result<String>>, name: &str) -> Result<String> {
    for line in lines {
        if let Some(value) = line?.strip_prefix(&format!("{name}: ")) {
            return Ok(value.to_owned());
        }
    }
    Err(format!("the stream has no {name}").into())
}

impl Features {
    fn get(&self, status: u16, path: &str, fields: &[(&str, &str)]) -> Result<Response> {
        send(&self.client, status, Method::GET, &format!("{}{path}", self.url), Body::from(""), fields)
    }

    fn put(&self, status: u16, path: &str, body: impl Into<Body>, fields: &[(&str, &str)]) -> Result {
        send(&self.client, status, Method::PUT, &format!("{}{path}", self.url), body.into(), fields).map(drop)
    }

    fn etag(&self) -> Result<String> {
        Ok(self.get(200, "/k/a", &[])?.headers()[ETAG].to_str()?.to_owned())
    }

    fn chunked(&self) -> Result {
        self.put(200, "/k/large", Body::new(Cursor::new(self.large.clone())), &[])?;
        same(self.get(200, "/k/large", &[])?.bytes()? == self.large, true)
    }

    fn if_match(&self) -> Result {
        self.put(200, "/k/a", "value", &[("If-Match", &self.etag()?)])?;
        self.put(412, "/k/a", "other", &[("If-Match", "\"7\"")])
    }

    fn refused(&self) -> Result {
        for _ in 0..3 {
            self.put(413, "/k/large", self.too_large.clone(), &[])?;
        }
        Ok(())
    }

    fn watch(&self) -> Result {
        let mut lines = BufReader::new(self.get(200, "/watch?prefix=w", &[])?).lines();
        field(&mut lines, "id")?;
        self.put(200, "/k/w1", "v", &[])?;
        let id = field(&mut lines, "id")?;
        same(field(&mut lines, "data")?.contains("w1"), true)?;
        drop(lines);
        self.put(200, "/k/w2", "v", &[])?;
        let mut lines = BufReader::new(self.get(200, "/watch?prefix=w", &[("Last-Event-ID", &id)])?).lines();
        same(field(&mut lines, "data")?.contains("w2"), true)
    }

    fn tls(&self) -> Result {
        let authority = Certificate::from_pem(&std::fs::read(&self.ca)?)?;
        let trusting = builder().tls_certs_only([authority]).build()?;
        let url = format!("{}/k/a", self.tls_url);
        send(&trusting, 200, Method::PUT, &url, "value".into(), &[])?;
        same(send(&trusting, 200, Method::GET, &url, "".into(), &[])?.text()?, "value".to_owned())?;
        same(self.client.get(url).send().is_err(), true)
    }

    #[cfg(unix)]
    fn unix_socket(&self) -> Result {
        let local = builder().unix_socket(self.socket.as_str()).build()?;
        send(&local, 200, Method::PUT, "http://localhost/k/a", "value".into(), &[]).map(drop)
    }

    #[cfg(not(unix))]
    fn unix_socket(&self) -> Result {
        Err(format!("no Unix socket {}", self.socket).into())
    }
}

fn feature(name: &str, result: Result) {
    match result {
        Ok(()) => println!("{name}\tyes"),
        Err(error) => println!("{name}\tfail\t{}", format!("{error}: {:?}", error.source()).replace('\n', " ")),
    }
}

fn main() -> Result {
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "a provider is installed")?;
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: reqwest URL TLS_URL CA SOCKET");
    let features = Features {
        client: builder().build()?,
        url: next()?,
        tls_url: next()?,
        ca: next()?,
        socket: next()?,
        large: (0..20_000_000).map(|at| (at % 251) as u8).collect(),
        too_large: vec![0; 24 << 20],
    };
    feature("PUT", features.put(200, "/k/a", "value", &[]));
    let read = features.get(200, "/k/a", &[]).and_then(|response| Ok(response.text()?));
    feature("GET", read.and_then(|value| same(value, "value".to_owned())));
    feature("chunked upload", features.chunked());
    println!("100-continue\tno\treqwest sends the body at once");
    let read = features.get(206, "/k/a", &[("Range", "bytes=1-3")]).and_then(|response| Ok(response.text()?));
    feature("range", read.and_then(|value| same(value, "alu".to_owned())));
    let etag = features.etag()?;
    feature("If-None-Match", features.get(304, "/k/a", &[("If-None-Match", &etag)]).map(drop));
    feature("If-Match", features.if_match());
    match features.refused() {
        Ok(()) => println!(
            "413\tno\tblocking reqwest fails if the response arrives before the end of a streamed body; a body of known \
             length works"
        ),
        failed => feature("413", failed),
    }
    feature("watch", features.watch());
    feature("TLS", features.tls());
    feature("Unix socket", features.unix_socket());
    Ok(())
}
