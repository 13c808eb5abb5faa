#!/usr/bin/env perl
# Perl's LWP: `perl perl_lwp.pl URL TLS_URL CA SOCKET` prints one line for each feature.
use strict;
use warnings;
use HTTP::Request;
use LWP::UserAgent;

my ($url, $tls, $ca) = @ARGV;
my $large     = substr(pack("C*", 0 .. 250) x 79_682, 0, 20_000_000);
my $too_large = "\0" x (24 << 20);
my $client    = LWP::UserAgent->new(timeout => 60, keep_alive => 1);

sub feature {
    my ($name, $run) = @_;
    if (eval { $run->(); 1 }) {
        print "$name\tyes\n";
    } else {
        print "$name\tfail\t", $@ =~ tr/\n/ /r, "\n";
    }
}

sub same {
    my ($actual, $expected) = @_;
    die "expected ", substr($expected, 0, 100), ", got ", substr($actual, 0, 100), "\n" if $actual ne $expected;
}

sub ask {
    my ($status, $method, $address, $body, @fields) = @_;
    my $response = $client->request(HTTP::Request->new($method, $address, \@fields, $body));
    same($response->code . " " . $response->message, $status . " " . $response->message);
    return $response;
}

# A body whose length is unknown.
sub streamed {
    my ($value) = @_;
    my $at = 0;
    return sub { my $part = substr($value, $at, 65536); $at += length $part; return $part };
}

sub etag { return ask(200, GET => "$url/k/a")->header("ETag") }

# Watches until an event has data; returns its id and its data.
sub watch {
    my ($begun, @fields) = @_;
    my $text    = "";
    my $request = HTTP::Request->new(GET => "$url/watch?prefix=w", \@fields);
    my $watcher = LWP::UserAgent->new(timeout => 60);
    my $take    = sub {
        $text .= $_[0];
        if ($begun && $text =~ /id: /) { $begun->(); $begun = undef }
        die "enough\n" if $text =~ /^data: .*\n/m;
    };
    $watcher->request($request, $take);
    my ($data) = $text =~ /^data: (.*)$/m or die "the stream has no data: $text\n";
    my @ids = $text =~ /^id: (.*)$/mg;
    return ($ids[-1], $data);
}

feature "PUT" => sub { ask(200, PUT => "$url/k/a", "value") };
feature "GET" => sub { same(ask(200, GET => "$url/k/a")->content, "value") };
feature "chunked upload" => sub {
    ask(200, PUT => "$url/k/large", streamed($large));
    same(ask(200, GET => "$url/k/large")->content eq $large, 1);
};
feature "100-continue" => sub {
    ask(200, PUT => "$url/k/a",    "value", Expect => "100-continue");
    ask(404, PUT => "$url/nowhere", "value", Expect => "100-continue");
};
feature "range" => sub { same(ask(206, GET => "$url/k/a", undef, Range => "bytes=1-3")->content, "alu") };
feature "If-None-Match" => sub { ask(304, GET => "$url/k/a", undef, "If-None-Match" => etag()) };
feature "If-Match" => sub {
    ask(200, PUT => "$url/k/a", "value", "If-Match" => etag());
    ask(412, PUT => "$url/k/a", "other", "If-Match" => '"7"');
};
feature "413" => sub {
    for (1 .. 3) {
        ask(413, PUT => "$url/k/large", $too_large);
        ask(413, PUT => "$url/k/large", streamed($too_large));
    }
};
feature "watch" => sub {
    my ($id, $data) = watch(sub { ask(200, PUT => "$url/k/w1", "v") });
    same($data =~ /w1/, 1);
    ask(200, PUT => "$url/k/w2", "v");
    (undef, $data) = watch(undef, "Last-Event-ID" => $id);
    same($data =~ /w2/, 1);
};
feature "TLS" => sub {
    die "an unknown authority is trusted\n" if $client->get("$tls/k/a")->is_success;
    $client = LWP::UserAgent->new(timeout => 60, ssl_opts => { SSL_ca_file => $ca });
    ask(200, PUT => "$tls/k/a", "value");
    same(ask(200, GET => "$tls/k/a")->content, "value");
};
print "Unix socket\tno\tneeds another package, such as LWP::Protocol::http::SocketUnixAlt\n";
