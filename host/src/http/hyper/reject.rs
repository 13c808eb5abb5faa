//! Fixed responses to connections that are not served.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Socket;
use super::event_loops::CountGuard;
use super::idle::LINGER;

/// Sends a 503 to a client over the connection limit. A client that expects TLS only finds its connection closed.
pub(super) async fn too_many_connections(socket: Socket, _counted: CountGuard) {
    const RESPONSE: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nServer: vkog\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Connection: close\r\nContent-Length: 21\r\n\r\nToo many connections\n";
    let sent = async {
        match socket {
            Socket::Tcp(stream, _) => write_and_drain(TcpStream::from_std(stream)?, RESPONSE).await,
            #[cfg(unix)]
            Socket::Unix(stream) => write_and_drain(UnixStream::from_std(stream)?, RESPONSE).await,
        }
    };
    // The client may have left, or may never leave.
    let _ = timeout(LINGER, sent).await;
}

/// Sends a 400 to a client that speaks plain HTTP on a TLS port.
pub(super) async fn plain_http(stream: TcpStream) -> io::Result<()> {
    const RESPONSE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nServer: vkog\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Connection: close\r\nContent-Length: 35\r\n\r\nThis port speaks TLS; use https://\n";
    write_and_drain(stream, RESPONSE).await
}

async fn write_and_drain<I: AsyncRead + AsyncWrite + Unpin>(mut stream: I, response: &[u8]) -> io::Result<()> {
    stream.write_all(response).await?;
    drain(stream).await
}

/// Reads until the client closes: a connection closed with bytes unread is reset, and the client would lose what was sent.
pub(super) async fn drain<I: AsyncRead + AsyncWrite + Unpin>(mut stream: I) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
