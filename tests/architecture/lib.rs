//! No code: the test beside this file reads the workspace.
