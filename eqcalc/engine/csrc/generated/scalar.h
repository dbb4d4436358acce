// What generated sources begin with.

#pragma once

using T = float;
