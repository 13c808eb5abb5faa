// Java's HttpClient: `java JavaHttpClient.java URL TLS_URL CA SOCKET` prints one line for each feature.

import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.Arrays;
import java.util.Iterator;
import java.util.stream.Stream;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class JavaHttpClient {
    static final Duration TIMEOUT = Duration.ofSeconds(60);
    static final BodyPublisher NONE = BodyPublishers.noBody();
    static final HttpClient CLIENT = HttpClient.newHttpClient();
    static final byte[] LARGE = new byte[20_000_000];
    static final byte[] TOO_LARGE = new byte[24 << 20];
    static String url;

    interface Feature {
        void run() throws Exception;
    }

    static void feature(String name, Feature feature) {
        try {
            feature.run();
            System.out.println(name + "\tyes");
        } catch (Exception | AssertionError error) {
            System.out.println(name + "\tfail\t" + error.toString().replace('\n', ' '));
        }
    }

    static void same(Object actual, Object expected) {
        if (!actual.equals(expected)) throw new AssertionError("expected " + expected + ", got " + actual);
    }

    static HttpRequest.Builder request(String method, String address, BodyPublisher body, String... fields) {
        var request = HttpRequest.newBuilder(URI.create(address)).timeout(TIMEOUT).method(method, body);
        return fields.length == 0 ? request : request.headers(fields);
    }

    static HttpResponse<byte[]> send(HttpClient client, int status, HttpRequest.Builder request) throws Exception {
        var response = client.send(request.build(), BodyHandlers.ofByteArray());
        same(response.statusCode(), status);
        return response;
    }

    static HttpResponse<byte[]> get(int status, String path, String... fields) throws Exception {
        return send(CLIENT, status, request("GET", url + path, NONE, fields));
    }

    static void put(int status, String path, BodyPublisher body, String... fields) throws Exception {
        send(CLIENT, status, request("PUT", url + path, body, fields));
    }

    static String text(HttpResponse<byte[]> response) {
        return new String(response.body());
    }

    static BodyPublisher value(String value) {
        return BodyPublishers.ofString(value);
    }

    static BodyPublisher streamed(byte[] value) {
        return BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(value));
    }

    static String etag() throws Exception {
        return get(200, "/k/a").headers().firstValue("ETag").orElseThrow();
    }

    static Stream<String> stream(String... fields) throws Exception {
        var response = CLIENT.send(request("GET", url + "/watch?prefix=w", NONE, fields).build(), BodyHandlers.ofLines());
        same(response.statusCode(), 200);
        return response.body();
    }

    static String field(Iterator<String> lines, String name) {
        while (lines.hasNext()) {
            var line = lines.next();
            if (line.startsWith(name + ": ")) return line.substring(name.length() + 2);
        }
        throw new AssertionError("the stream has no " + name);
    }

    static void watch() throws Exception {
        String id;
        try (var stream = stream()) {
            var lines = stream.iterator();
            field(lines, "id");
            put(200, "/k/w1", value("v"));
            id = field(lines, "id");
            same(field(lines, "data").contains("w1"), true);
        }
        put(200, "/k/w2", value("v"));
        try (var stream = stream("Last-Event-ID", id)) {
            same(field(stream.iterator(), "data").contains("w2"), true);
        }
    }

    static SSLContext trusting(String ca) throws Exception {
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream pem = Files.newInputStream(Path.of(ca))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }

    static void tls(String address, String ca) throws Exception {
        var client = HttpClient.newBuilder().sslContext(trusting(ca)).build();
        send(client, 200, request("PUT", address + "/k/a", value("value")));
        same(text(send(client, 200, request("GET", address + "/k/a", NONE))), "value");
        try {
            send(CLIENT, 200, request("GET", address + "/k/a", NONE));
        } catch (javax.net.ssl.SSLException error) {
            return;
        }
        throw new AssertionError("an unknown authority is trusted");
    }

    public static void main(String[] arguments) {
        url = arguments[0];
        for (int at = 0; at < LARGE.length; at++) LARGE[at] = (byte) (at % 251);
        feature("PUT", () -> put(200, "/k/a", value("value")));
        feature("GET", () -> same(text(get(200, "/k/a")), "value"));
        feature("chunked upload", () -> {
            put(200, "/k/large", streamed(LARGE));
            same(Arrays.equals(get(200, "/k/large").body(), LARGE), true);
        });
        feature("100-continue", () -> {
            var request = request("PUT", url + "/k/large", BodyPublishers.ofByteArray(LARGE));
            send(CLIENT, 200, request.expectContinue(true));
        });
        feature("range", () -> same(text(get(206, "/k/a", "Range", "bytes=1-3")), "alu"));
        feature("If-None-Match", () -> get(304, "/k/a", "If-None-Match", etag()));
        feature("If-Match", () -> {
            put(200, "/k/a", value("value"), "If-Match", etag());
            put(412, "/k/a", value("other"), "If-Match", "\"7\"");
        });
        feature("413", () -> {
            for (int round = 0; round < 10; round++) {
                put(413, "/k/large", BodyPublishers.ofByteArray(TOO_LARGE));
                put(413, "/k/large", streamed(TOO_LARGE));
            }
        });
        feature("watch", JavaHttpClient::watch);
        feature("TLS", () -> tls(arguments[1], arguments[2]));
        System.out.println("Unix socket\tno\tHttpClient connects to host names and ports only");
        System.exit(0);
    }
}
