//! The seat of Terrace's load generator: workloads, an open-loop runner that counts latency from
//! the intended start of each request, histograms, and the report as table, JSON and one HTML page.
//! None of it is here yet; until it is, `scripts/ratios` compares Terrace with its references. It
//! will speak HTTP only and depend on no store and no layer, so that it measures any level, and any
//! other server with the same API, from outside.
