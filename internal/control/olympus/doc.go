// Package olympus is the API server: HTTP and gRPC on one port, over the
// services of api/v1.
//
// Every method runs through the same steps, whatever it came by: who calls
// (Authenticator), may they (the scope that the contract states), then the
// method itself, then one line in the log, one in the metrics, and where it
// failed the one error shape. The REST routes are read from the contract's own
// annotations; what a route cannot say (202 or 200 on run, logs and events as
// streams, standard input) are handlers of our own over the same methods.
//
// Entering a request is Admission: rate, policy, judges, signature, ledger.
package olympus
