"""Turn published weights into one lean folder, and that folder into modules on the device."""
