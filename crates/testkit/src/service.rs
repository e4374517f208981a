//! A scripted HTTP service that handles one request per connection.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running service.
pub struct Service {
    address: SocketAddr,
    /// Head and body of each request received.
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Service {
    /// Starts a service. `answer` maps the body of a request to a status (such as `200 OK`) and a body; with `None` the
    /// service never responds.
    pub async fn start(answer: impl Fn(&str) -> Option<(&'static str, String)> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                tokio::spawn(async move { serve(socket, &*answer, &seen).await });
            }
        });
        Self { address, asked }
    }

    /// The URL of a path of the service.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Head and body of each request received so far.
    pub fn asked(&self) -> Vec<(String, String)> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut socket: TcpStream,
    answer: &(dyn Fn(&str) -> Option<(&'static str, String)> + Send + Sync),
    seen: &Mutex<Vec<(String, String)>>,
) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if socket.read_buf(&mut bytes).await.is_ok_and(|read| read == 0) {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let len = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        if body.len() >= len.unwrap_or(0) {
            break (head, body.to_owned());
        }
    };
    seen.lock().unwrap().push((head, body.clone()));
    match answer(&body) {
        Some((status, body)) => {
            let len = body.len();
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}");
            let _ = socket.write_all(text.as_bytes()).await;
        }
        None => {
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }
}
