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
// include it.
var scopeTable = []scopeRow{
	{scopeAccountsRead, "get, look up, list, search and export accounts"},
	{scopeAccountsWrite, "create, change, merge and delete accounts"},
	{scopeAccountsAdmin, "in addition to the above: change read-only custom fields, see and change internal ones"},
	{scopeAuditRead, "read account histories and the state of projections"},
	{scopeEventsRead, "read the event feed"},
	{scopeWebhooksRead, "read webhooks and their deliveries"},
	{scopeWebhooksWrite, "register, change and delete webhooks"},
	{scopeLoginsWrite, "check whether an account may log in, and record logins"},
	{scopeConfigRead, "read the configuration"},
	{scopeConfigWrite, "change the configuration, rebuild projections"},
	{scopeMetricsRead, "read the metrics at /metrics"},
	{scopeKeysRead, "list API keys, without their secrets"},
	{scopeKeysWrite, "create API keys with scopes the caller has, change and revoke API keys"},
	{scopeAdmin, "everything, including what later versions add"},
}

// Scopes returns the names of all scopes.
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

// scopeText returns scopeTable as Markdown.
func scopeText() string {
	var b strings.Builder
	for _, row := range scopeTable {
		b.WriteString("- `" + string(row.scope) + "`: " + row.allows + "\n")
	}
	return b.String()
}
