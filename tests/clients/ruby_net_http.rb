# Ruby's Net::HTTP: `ruby ruby_net_http.rb URL TLS_URL CA SOCKET` prints one line for each feature.

require "net/http"
require "stringio"
require "timeout"

URL, TLS_URL, CA = ARGV
LARGE = ((0...251).map(&:chr).join.b * 79_682)[0, 20_000_000]
TOO_LARGE = "\0".b * (24 << 20)

def feature(name)
  Timeout.timeout(120) { yield }
  puts "#{name}\tyes"
rescue StandardError => error
  puts "#{name}\tfail\t#{error.class}: #{error.message.tr("\n", " ")}"
end

def same(actual, expected)
  raise "expected #{expected.inspect[0, 100]}, got #{actual.inspect[0, 100]}" unless actual == expected
end

def connection(base = URL, **options)
  uri = URI(base)
  Net::HTTP.start(uri.host, uri.port, nil, read_timeout: 60, **options) { |http| return yield http }
end

def ask(status, method, path, body: nil, stream: nil, fields: {}, base: URL, **options)
  connection(base, **options) do |http|
    request = Net::HTTP.const_get(method).new(path, fields)
    if stream
      request.body_stream = stream
      request["Transfer-Encoding"] = "chunked"
    else
      request.body = body
    end
    response = http.request(request)
    same(response.code, status.to_s)
    response
  end
end

def etag = ask(200, :Get, "/k/a")["ETag"]

# Reads events until one has data, and returns its last id and its data.
def event(parts)
  text = +""
  loop do
    text << parts.next
    data = text[/^data: (.*)\n/, 1]
    return text.scan(/^id: (.*)$/).last[0], data if data
  end
end

# Yields an enumerator of what comes in.
def stream(fields = {})
  connection do |http|
    http.request(Net::HTTP::Get.new("/watch?prefix=w", fields)) do |response|
      same(response.code, "200")
      return yield response.enum_for(:read_body)
    end
  end
end

feature("PUT") { ask(200, :Put, "/k/a", body: "value") }
feature("GET") { same(ask(200, :Get, "/k/a").body, "value") }
feature("chunked upload") do
  ask(200, :Put, "/k/large", stream: StringIO.new(LARGE))
  same(ask(200, :Get, "/k/large").body == LARGE, true)
end
feature("100-continue") do
  ask(200, :Put, "/k/a", body: "value", fields: { "Expect" => "100-continue" }, continue_timeout: 60)
  ask(404, :Put, "/nowhere", body: "value", fields: { "Expect" => "100-continue" }, continue_timeout: 60)
end
feature("range") { same(ask(206, :Get, "/k/a", fields: { "Range" => "bytes=1-3" }).body, "alu") }
feature("If-None-Match") { ask(304, :Get, "/k/a", fields: { "If-None-Match" => etag }) }
feature("If-Match") do
  ask(200, :Put, "/k/a", body: "value", fields: { "If-Match" => etag })
  ask(412, :Put, "/k/a", body: "other", fields: { "If-Match" => '"7"' })
end
feature("413") do
  3.times do
    ask(413, :Put, "/k/large", body: TOO_LARGE)
    ask(413, :Put, "/k/large", stream: StringIO.new(TOO_LARGE))
  end
end
feature("watch") do
  id, data = stream do |parts|
    parts.next
    ask(200, :Put, "/k/w1", body: "v")
    event(parts)
  end
  same(data.include?("w1"), true)
  ask(200, :Put, "/k/w2", body: "v")
  same(stream("Last-Event-ID" => id) { |parts| event(parts) }[1].include?("w2"), true)
end
feature("TLS") do
  trusting = { base: TLS_URL, use_ssl: true, ca_file: CA }
  ask(200, :Put, "/k/a", body: "value", **trusting)
  same(ask(200, :Get, "/k/a", **trusting).body, "value")
  begin
    ask(200, :Get, "/k/a", base: TLS_URL, use_ssl: true)
  rescue OpenSSL::SSL::SSLError
    next
  end
  raise "an unknown authority is trusted"
end
puts "Unix socket\tno\tNet::HTTP has no option for it"
$stdout.flush
exit!(0)
