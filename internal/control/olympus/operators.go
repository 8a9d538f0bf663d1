package olympus

import (
	"context"
	"errors"
	"time"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
	"github.com/tartarus-vm/tartarus/internal/control/cerberus"
	"github.com/tartarus-vm/tartarus/internal/control/judges/aeacus"
	"github.com/tartarus-vm/tartarus/internal/control/ledger"
	"github.com/tartarus-vm/tartarus/internal/sandbox"
)

// Templates lists the templates there are.
type Templates interface {
	Templates(ctx context.Context) ([]sandbox.Template, error)
}

// NodeList lists the nodes there are.
type NodeList interface {
	Nodes(ctx context.Context) ([]sandbox.Node, error)
}

// AuditBook is the audit chain.
type AuditBook interface {
	Audit(ctx context.Context, audit sandbox.AuditEntry) error
	AuditEntries(ctx context.Context, q ledger.AuditQuery) ([]sandbox.AuditEntry, error)
	AuditRows(ctx context.Context, after int64, limit int) ([]ledger.AuditRow, error)
}

// Tokens makes, lists and ends tokens, as far as who may.
type Tokens interface {
	Create(ctx context.Context, who sandbox.Principal, spec cerberus.Spec) (string, ledger.Token, error)
	List(ctx context.Context, who sandbox.Principal, tenant string) ([]ledger.Token, error)
	Revoke(ctx context.Context, who sandbox.Principal, id string) error
}

// Operator is what operators look at.
type Operator struct {
	Templates Templates
	Nodes     NodeList
	Audit     AuditBook
	Policies  PolicySource
	Versions  PolicyVersions
	Tokens    Tokens
}

func (o Operator) validate() error {
	if o.Templates == nil || o.Nodes == nil || o.Audit == nil || o.Policies == nil || o.Versions == nil || o.Tokens == nil {
		return errors.New("olympus: Operator needs templates, nodes, audit, policies, their versions and tokens")
	}
	return nil
}

// operators are the methods of operators.
type operators struct {
	apiv1.UnimplementedOperatorServiceServer
	s *Server
}

// ListTemplates lists templates.
func (x *operators) ListTemplates(ctx context.Context, _ *apiv1.ListTemplatesRequest) (*apiv1.ListTemplatesResponse, error) {
	templates, err := x.s.cfg.Operator.Templates.Templates(ctx)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListTemplatesResponse{}
	for _, t := range templates {
		out.Templates = append(out.Templates, templateOf(t))
	}
	return out, nil
}

// ListNodes lists nodes.
func (x *operators) ListNodes(ctx context.Context, _ *apiv1.ListNodesRequest) (*apiv1.ListNodesResponse, error) {
	nodes, err := x.s.cfg.Operator.Nodes.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListNodesResponse{}
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, nodeOf(n))
	}
	return out, nil
}

// CreateToken makes a token. Without its audit entry it is revoked again.
func (x *operators) CreateToken(ctx context.Context, req *apiv1.CreateTokenRequest) (*apiv1.CreateTokenResponse, error) {
	who := callOf(ctx).principal
	spec := cerberus.Spec{Tenant: req.GetTenant()}
	for _, s := range req.GetScopes() {
		spec.Scopes = append(spec.Scopes, sandbox.Scope(s))
	}
	var err error
	if spec.ExpiresAt, err = instant("expires_at", req.GetExpiresAt()); err != nil {
		return nil, err
	}
	tokens := x.s.cfg.Operator.Tokens
	token, info, err := tokens.Create(ctx, who, spec)
	if err != nil {
		return nil, err
	}
	if err := x.audit(ctx, aeacus.TokenCreate, info.ID); err != nil {
		return nil, errors.Join(err, tokens.Revoke(context.WithoutCancel(ctx), who, info.ID))
	}
	return &apiv1.CreateTokenResponse{Token: token, Info: tokenOf(info)}, nil
}

// ListTokens lists what is kept of tokens.
func (x *operators) ListTokens(ctx context.Context, req *apiv1.ListTokensRequest) (*apiv1.ListTokensResponse, error) {
	tokens, err := x.s.cfg.Operator.Tokens.List(ctx, callOf(ctx).principal, req.GetTenant())
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListTokensResponse{}
	for _, t := range tokens {
		out.Tokens = append(out.Tokens, tokenOf(t))
	}
	return out, nil
}

// RevokeToken ends a token. It is ended even where the audit cannot be
// written, since the other way round would help a thief.
func (x *operators) RevokeToken(ctx context.Context, req *apiv1.RevokeTokenRequest) (*apiv1.RevokeTokenResponse, error) {
	if err := x.s.cfg.Operator.Tokens.Revoke(ctx, callOf(ctx).principal, req.GetId()); err != nil {
		return nil, err
	}
	if err := x.audit(ctx, aeacus.TokenRevoke, req.GetId()); err != nil {
		return nil, err
	}
	return &apiv1.RevokeTokenResponse{}, nil
}

func (x *operators) audit(ctx context.Context, action aeacus.Action, what string) error {
	if err := x.s.cfg.Operator.Audit.Audit(ctx, aeacus.Done(x.s.auditCall(ctx, x.s.cfg.Clock()), action, "", what)); err != nil {
		return unwritten(err)
	}
	return nil
}

// auditCall is who calls, as the audit knows it.
func (s *Server) auditCall(ctx context.Context, now time.Time) aeacus.Call {
	c := callOf(ctx)
	return aeacus.Call{Principal: c.principal, Source: c.source, RequestID: c.requestID, Time: now}
}

func tokenOf(t ledger.Token) *apiv1.Token {
	return &apiv1.Token{
		Id: t.ID, Tenant: t.Tenant, Scopes: scopeNames(t.Scopes),
		CreatedAt: timeOf(t.CreatedAt), ExpiresAt: timeOf(t.ExpiresAt), RevokedAt: timeOf(t.RevokedAt), LastUsedAt: timeOf(t.LastUsedAt),
	}
}
