# Varnish 7 in front of Terrace. Set the backend, and in `writers` the instances of Terrace.
#
# In Terrace:
#   [edge]
#   public = ["shop/=60"]                # who reaches Varnish may read these records; at most 60 s old
#   purge = ["http://varnish.internal"]  # each Varnish
#
# What may be kept, and for how long, Terrace says with each answer; nothing here has to repeat it.
vcl 4.1;

backend terrace {
    .host = "127.0.0.1";
    .port = "8010";
}

acl writers {
    "127.0.0.1";
    "::1";
}

sub vcl_recv {
    if (req.method == "PURGE") {
        if (client.ip !~ writers) {
            return (synth(405, "Not allowed"));
        }
        return (purge);
    }
    # Varnish by itself keeps nothing of a request with Authorization. Here the answer says whether it is
    # everybody's, and all else is everybody's own.
    if ((req.method == "GET" || req.method == "HEAD") && req.url ~ "^/v1/records/") {
        unset req.http.Cookie;
        return (hash);
    }
    if (req.method == "GET" || req.method == "HEAD") {
        return (pass);
    }
}

# By path alone: a purge names the address of Varnish as its host, and clients the name that they know.
sub vcl_hash {
    hash_data(req.url);
    return (lookup);
}

sub vcl_backend_response {
    # For so long after its end an answer is there to be asked for again with If-None-Match (304).
    set beresp.keep = 5m;
}

sub vcl_deliver {
    unset resp.http.Surrogate-Key;
}
