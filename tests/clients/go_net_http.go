// Go's net/http: `go run go_net_http.go URL TLS_URL CA SOCKET` prints one line for each feature.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"time"
)

var (
	url, tlsURL, ca, socket = os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	client                  = &http.Client{Transport: &http.Transport{ExpectContinueTimeout: 60 * time.Second}}
	large                   = bytes.Repeat([]byte("0123456789abcdefghi\n"), 1_000_000)
	tooLarge                = make([]byte, 24<<20)
)

// Hides the length of a body, so that it is sent in chunks.
type reader struct{ io.Reader }

func do(client *http.Client, status int, method, url string, body io.Reader, fields ...string) (*http.Response, error) {
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	for at := 0; at < len(fields); at += 2 {
		request.Header.Set(fields[at], fields[at+1])
	}
	return send(client, status, request)
}

func send(client *http.Client, status int, request *http.Request) (*http.Response, error) {
	response, err := client.Do(request)
	if err == nil && response.StatusCode != status {
		response.Body.Close()
		err = fmt.Errorf("expected %d, got %s", status, response.Status)
	}
	return response, err
}

// Asks for a response, and compares its body unless that is nil.
func ask(client *http.Client, status int, method, url string, body io.Reader, expected []byte, fields ...string) error {
	response, err := do(client, status, method, url, body, fields...)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err == nil && expected != nil && !bytes.Equal(read, expected) {
		err = fmt.Errorf("%d bytes differ from what was expected", len(read))
	}
	return err
}

func put(path, value string, status int, fields ...string) error {
	return ask(client, status, "PUT", url+path, strings.NewReader(value), nil, fields...)
}

func etag() string {
	response, err := do(client, 200, "GET", url+"/k/a", nil)
	if err != nil {
		return err.Error()
	}
	response.Body.Close()
	return response.Header.Get("ETag")
}

func first(errors ...error) error {
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

func continued() error {
	request, err := http.NewRequest("PUT", url+"/k/large", bytes.NewReader(large))
	if err != nil {
		return err
	}
	asked := false
	trace := &httptrace.ClientTrace{Got100Continue: func() { asked = true }}
	request = request.WithContext(httptrace.WithClientTrace(context.Background(), trace))
	request.Header.Set("Expect", "100-continue")
	response, err := send(client, 200, request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if !asked {
		return fmt.Errorf("the server did not ask for the body")
	}
	return nil
}

func refused() error {
	for round := 0; round < 3; round++ {
		declared := ask(client, 413, "PUT", url+"/k/large", bytes.NewReader(tooLarge), nil)
		chunked := ask(client, 413, "PUT", url+"/k/large", reader{bytes.NewReader(tooLarge)}, nil)
		if err := first(declared, chunked); err != nil {
			return err
		}
	}
	return nil
}

// Reads the value of the next field of that name.
func field(lines *bufio.Scanner, name string) (string, error) {
	for lines.Scan() {
		if value := strings.TrimPrefix(lines.Text(), name+": "); value != lines.Text() {
			return value, nil
		}
	}
	return "", fmt.Errorf("the stream has no %s", name)
}

func watch() error {
	response, err := do(client, 200, "GET", url+"/watch?prefix=w", nil)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(response.Body)
	_, err = field(lines, "id")
	err = first(err, put("/k/w1", "v", 200))
	if err != nil {
		return err
	}
	id, err := field(lines, "id")
	data, _ := field(lines, "data")
	response.Body.Close()
	if err != nil || !strings.Contains(data, "w1") {
		return fmt.Errorf("%q: %v", data, err)
	}
	if err := put("/k/w2", "v", 200); err != nil {
		return err
	}
	response, err = do(client, 200, "GET", url+"/watch?prefix=w", nil, "Last-Event-ID", id)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	data, err = field(bufio.NewScanner(response.Body), "data")
	if err == nil && !strings.Contains(data, "w2") {
		err = fmt.Errorf("%q", data)
	}
	return err
}

func overTLS() error {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	trusting := &http.Client{Transport: transport}
	if ask(client, 200, "GET", tlsURL+"/k/a", nil, nil) == nil {
		return fmt.Errorf("an unknown authority is trusted")
	}
	return first(ask(trusting, 200, "PUT", tlsURL+"/k/a", strings.NewReader("value"), nil),
		ask(trusting, 200, "GET", tlsURL+"/k/a", nil, []byte("value")))
}

func unixSocket() error {
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	local := &http.Client{Transport: &http.Transport{DialContext: dial}}
	return ask(local, 200, "PUT", "http://localhost/k/a", strings.NewReader("value"), nil)
}

func main() {
	time.AfterFunc(60*time.Second, func() { os.Exit(1) })
	features := []struct {
		name string
		run  func() error
	}{
		{"PUT", func() error { return put("/k/a", "value", 200) }},
		{"GET", func() error { return ask(client, 200, "GET", url+"/k/a", nil, []byte("value")) }},
		{"chunked upload", func() error {
			return first(ask(client, 200, "PUT", url+"/k/large", reader{bytes.NewReader(large)}, nil),
				ask(client, 200, "GET", url+"/k/large", nil, large))
		}},
		{"100-continue", continued},
		{"range", func() error {
			return ask(client, 206, "GET", url+"/k/a", nil, []byte("alu"), "Range", "bytes=1-3")
		}},
		{"If-None-Match", func() error {
			return ask(client, 304, "GET", url+"/k/a", nil, nil, "If-None-Match", etag())
		}},
		{"If-Match", func() error {
			return first(put("/k/a", "value", 200, "If-Match", etag()), put("/k/a", "other", 412, "If-Match", `"7"`))
		}},
		{"413", refused},
		{"watch", watch},
		{"TLS", overTLS},
		{"Unix socket", unixSocket},
	}
	for _, feature := range features {
		if err := feature.run(); err != nil {
			fmt.Printf("%s\tfail\t%s\n", feature.name, strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Printf("%s\tyes\n", feature.name)
		}
	}
}
