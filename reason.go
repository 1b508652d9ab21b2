package flyregion

// reason says why a statement runs where it does.
type reason string

const (
	becauseRead        reason = "read"
	becauseWrite       reason = "write"
	becauseTransaction reason = "transaction"
	becauseAsked       reason = "asked"               // by the context or a comment in the statement
	becauseUnknown     reason = "position_unknown"    // the position that the read has to see is not known
	becauseSooner      reason = "primary_sooner"      // the primary was expected to answer before the replica shows the session's writes
	becauseLag         reason = "replica_lag"         // the replica did not replay in time what the read has to see
	becauseBehind      reason = "replica_behind"      // the replica is further behind than is allowed
	becauseUnreachable reason = "replica_unreachable" // no connection to a replica
	becauseRefused     reason = "replica_refused"     // the replica took the statement for a write
	becauseLost        reason = "replica_lost"        // the connection broke, or the replica ended it
	becauseConflict    reason = "replica_conflict"    // replay canceled the statement, or held a lock for too long
	becauseMissing     reason = "replica_missing"     // an object is not on the replica yet
	becauseBroken      reason = "replica_broken"      // the replica lacks a file, space or memory, or its copy is corrupt
	becauseCatalog     reason = "catalog_unknown"     // the catalog could not be asked which functions are volatile
	becauseConsumable  reason = "argument_used_once"  // an argument could not be sent to a second server
)
