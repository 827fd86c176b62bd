"""Published weights into one lean folder, and that folder into modules on the device."""

from worker import engine as engine  # first: it makes all other imports faster
