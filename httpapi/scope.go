package httpapi

import (
	"slices"
	"strings"
)

// scope is a right that a credential has and a route needs.
type scope string

// The scopes.
const (
	scopeAccountsRead  scope = "accounts:read"
	scopeAccountsWrite scope = "accounts:write"
	scopeAccountsAdmin scope = "accounts:admin"
	scopeAuditRead     scope = "audit:read"
	scopeEventsRead    scope = "events:read"
	scopeWebhooksRead  scope = "webhooks:read"
	scopeWebhooksWrite scope = "webhooks:write"
	scopeLoginsWrite   scope = "logins:write"
	scopeConfigRead    scope = "config:read"
	scopeConfigWrite   scope = "config:write"
	scopeMetricsRead   scope = "metrics:read"
	scopeKeysRead      scope = "keys:read"
	scopeKeysWrite     scope = "keys:write"
	scopeAdmin         scope = "ledger:admin"
)

// scopeRow is a row of scopeTable.
type scopeRow struct {
	scope  scope
	allows string // a phrase
}

// scopeTable says what each scope allows. The pages and the OpenAPI document
// are made of it.
var scopeTable = []scopeRow{
	{scopeAccountsRead, "get, look up, list and search accounts"},
	{scopeAccountsWrite, "create, change, merge and delete accounts"},
	{scopeAccountsAdmin, "with one of these: write read-only custom fields, see and write internal ones"},
	{scopeAuditRead, "histories; where the projections stand"},
	{scopeEventsRead, "the event feed"},
	{scopeWebhooksRead, "webhooks and their deliveries"},
	{scopeWebhooksWrite, "register, change and delete webhooks"},
	{scopeLoginsWrite, "ask whether somebody may log in, and record it"},
	{scopeConfigRead, "the configuration"},
	{scopeConfigWrite, "change the configuration, rebuild projections"},
	{scopeMetricsRead, "the figures at /metrics"},
	{scopeKeysRead, "list API keys, never their secrets"},
	{scopeKeysWrite, "make API keys with scopes of one's own, change and revoke API keys"},
	{scopeAdmin, "everything, also what later versions add"},
}

// Scopes are the names of all scopes.
func Scopes() []string {
	names := make([]string, len(scopeTable))
	for i, row := range scopeTable {
		names[i] = string(row.scope)
	}
	return names
}

// known reports whether there is a scope of this name.
func (s scope) known() bool {
	return slices.ContainsFunc(scopeTable, func(row scopeRow) bool { return row.scope == s })
}

// scopeText is the table as text.
func scopeText() string {
	var b strings.Builder
	for _, row := range scopeTable {
		b.WriteString("- `" + string(row.scope) + "`: " + row.allows + "\n")
	}
	return b.String()
}
