package olympus

import (
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// method is one method of the contract.
type method struct {
	full  string // as gRPC names it: /tartarus.v1.SandboxService/Get
	name  string // for logs and metrics: Get
	scope apiv1.Scope
	input protoreflect.MessageDescriptor
	rule  *annotations.HttpRule // nil: no route of its own
	unary *grpc.MethodDesc      // nil for streams
	impl  any                   // what unary is called on
}

// methodsOf reads the methods of services from the contract. One without a
// scope is an error: it would be open to everybody, or to nobody.
func methodsOf(services map[*grpc.ServiceDesc]any) (map[string]*method, error) {
	methods := map[string]*method{}
	var errs []error
	for service, impl := range services {
		file := apiv1.File_v1_tartarus_proto.Services().ByName(protoreflect.FullName(service.ServiceName).Name())
		if file == nil {
			errs = append(errs, fmt.Errorf("the contract has no service %s", service.ServiceName))
			continue
		}
		for i := range file.Methods().Len() {
			d := file.Methods().Get(i)
			m := &method{
				full: "/" + service.ServiceName + "/" + string(d.Name()), name: string(d.Name()),
				input: d.Input(), impl: impl,
			}
			var err error
			if m.scope, err = scopeOf(d); err != nil {
				errs = append(errs, err)
			}
			if proto.HasExtension(d.Options(), annotations.E_Http) {
				m.rule, _ = proto.GetExtension(d.Options(), annotations.E_Http).(*annotations.HttpRule)
			}
			for j := range service.Methods {
				if service.Methods[j].MethodName == m.name {
					m.unary = &service.Methods[j]
				}
			}
			methods[m.full] = m
		}
	}
	return methods, errors.Join(errs...)
}

// scopeOf is the scope that the contract states for a method.
func scopeOf(d protoreflect.MethodDescriptor) (apiv1.Scope, error) {
	scope, ok := proto.GetExtension(d.Options(), apiv1.E_Scope).(apiv1.Scope)
	if !ok || scope == apiv1.Scope_SCOPE_UNSPECIFIED {
		return scope, fmt.Errorf("method %s states no scope", d.FullName())
	}
	return scope, nil
}

// scopes says what the contract's scopes are called in a principal.
var scopes = map[apiv1.Scope]sandbox.Scope{
	apiv1.Scope_SCOPE_READ:  sandbox.ScopeRead,
	apiv1.Scope_SCOPE_RUN:   sandbox.ScopeRun,
	apiv1.Scope_SCOPE_ADMIN: sandbox.ScopeAdmin,
}

// pattern is the method and path of an HTTP rule.
func pattern(r *annotations.HttpRule) (verb, path string) {
	switch p := r.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return "GET", p.Get
	case *annotations.HttpRule_Post:
		return "POST", p.Post
	case *annotations.HttpRule_Delete:
		return "DELETE", p.Delete
	case *annotations.HttpRule_Put:
		return "PUT", p.Put
	case *annotations.HttpRule_Patch:
		return "PATCH", p.Patch
	}
	return "", ""
}
