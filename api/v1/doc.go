// Package tartarusv1 is the contract of Tartarus in Go: messages, gRPC clients
// and servers made from tartarus.proto, and its OpenAPI document.
package tartarusv1
